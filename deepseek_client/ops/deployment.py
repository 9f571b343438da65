"""What serves the current directory: found by the testimonies of its workers, and proved in /proc before any signal."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..telemetry.testimony import Testimony, process_state, read_testimonies, run_directory
from .env_file import VARIABLE
from .gunicorn_command import Command, gunicorn_arguments, is_genuine
from .refusal import Refusal

__all__ = ["Deployment", "Server", "Worker", "name_of"]

_PROC = Path("/proc")
_TITLE = "gunicorn: "  # what the package setproctitle lets gunicorn write over its command line


class Worker(NamedTuple):
    """A process that will not be taken for another one that has its number later."""

    pid: int
    started: int


class Deployment:
    """The current directory, and who serves it.

    Attributes:
        directory: where the testimonies are.
        servers: the gunicorns, by pid.
        others: what processes have said that no gunicorn of these has forked: they do not hear a SIGHUP.
        silent: the gunicorns that work here without a worker that has testified, by pid.
        doubts: why a process that a testimony names as its master is not among the servers.

    Args:
        values: what `.env` says.

    Raises:
        Refusal: the system or the user may not look.

    Threads: one.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        if process_state(os.getpid()) is None:
            raise Refusal("need Linux's /proc, to see which workers run and what the server was started with")
        self.directory = run_directory({**values, **os.environ})
        said = self.testimonies()
        self.servers: list[Server] = []
        self.doubts: list[str] = []
        for pid in sorted({testimony.master for testimony in said.values()}):
            try:
                self.servers.append(Server(pid, self))
            except _Doubt as doubt:
                self.doubts.append(str(doubt))
        self.silent = self._silent()
        workers = {worker.pid for server in self.servers for worker in server.workers()}
        # With --preload a master testifies, and what a worker forks is a helper.
        known = workers | {server.pid for server in self.servers}
        self.others = [each for each in said.values() if each.pid not in known and each.master not in workers]
        self.others = [each for each in self.others if _works_here(each.pid)]

    def testimonies(self) -> dict[int, Testimony]:
        """Returns what the living processes have said, by pid."""
        try:
            return {testimony.pid: testimony for testimony in read_testimonies(self.directory)}
        except OSError as error:
            reason = f"cannot read {self.directory}: {error.strerror}"
            raise Refusal(f"{reason}: run this as the server's user, or as root") from None

    def _silent(self) -> list[int]:
        known = {server.pid for server in self.servers}
        return [
            pid for pid in sorted(_pids()) if pid not in known and _works_here(pid) and self._is_server(pid)
        ]

    def _is_server(self, pid: int) -> bool:
        try:
            Server(pid, self)
        except _Doubt:
            return False
        return True


class Server:
    """A gunicorn master that serves the current directory.

    Attributes:
        pid: the master's.
        command: how it was started, as far as /proc still knows it.

    Threads: one.
    """

    def __init__(self, pid: int, deployment: Deployment) -> None:
        """Proves that it is one, or raises `_Doubt`; what is held here is that process, whatever gets its number."""
        self.pid = pid
        self._deployment = deployment
        self._handle = _handle_of(pid)
        state = process_state(pid)
        if state is None:
            raise _Doubt(f"process {pid} has ended")
        self._started = state.started
        try:
            is_here = os.path.samefile(_PROC / str(pid) / "cwd", ".")
            self._words = _words(pid)
            environ = _environ(pid)
            entry = (_PROC / str(pid)).stat()
        except PermissionError:
            raise _Doubt(f"process {pid} belongs to someone else: run this as its user, or as root") from None
        except OSError:
            raise _Doubt(f"process {pid} has ended") from None
        if not is_here:
            raise _Doubt(f"process {pid} works in another directory")
        if os.geteuid() not in (0, entry.st_uid):
            raise _Doubt(f"process {pid} belongs to someone else: run this as its user, or as root")
        if not _is_master(pid, state.parent, self._words, environ):
            raise _Doubt(
                f"process {pid} ({name_of(pid)}) is not a gunicorn that was started by its own command"
            )
        directory = os.path.realpath(".")
        words = tuple(self._words)
        if self._words[0].startswith(_TITLE):
            words = self._words_told_by(deployment, entry.st_uid)
            words = words if is_genuine(words, os.environ, directory) else ()
            # The title has been written over them. Ours are a guess; what hides .env will show in the proof.
            environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
        elif not is_genuine(words, environ, directory):
            raise _Doubt(f"process {pid} ({name_of(pid)}) runs a script that may not be gunicorn's own")
        user = None if os.geteuid() == entry.st_uid else (entry.st_uid, entry.st_gid, _groups(pid))
        self.command = Command(words, environ, directory, user)

    def why_reload_is_ineffective(self) -> str:
        """Returns why a reload would not make the server follow .env; "" if nothing tells against it."""
        remedy = "the running server, and it comes before .env: take it out there and restart the server"
        environ, arguments = self.command.environ, self.command.all_arguments()
        if VARIABLE in environ:
            return f"{VARIABLE}={environ[VARIABLE]!r} is in the environment of {remedy}"
        for argument in arguments:
            if re.match(rf"(-e ?|--env=)?{VARIABLE}=", argument):
                return f"{argument!r} is in the command line of {remedy}"
        return ""

    def is_preloaded(self) -> bool:
        """Whether its command line has it load the application before it forks, so that a reload reads no .env."""
        return "--preload" in self.command.all_arguments()

    def successor(self) -> int:
        """Returns the pid of the master that USR2 has started to take over; 0 if there is none."""
        return next((pid for pid in self._children() if _is_successor(pid, self.pid)), 0)

    def is_alive(self) -> bool:
        """Whether the master still runs."""
        state = process_state(self.pid)
        return state is not None and state.started == self._started

    def workers(self) -> set[Worker]:
        """Returns the workers that have not ended.

        They are children with the master's own command line, for a fork changes none; bin/serve's sandbox has another.
        """
        return {worker for pid, worker in self._children().items() if self._is_worker(pid)}

    def told(self) -> dict[Worker, Testimony | None]:
        """Returns what each worker has said, None for one that has said nothing yet."""
        said = self._deployment.testimonies()
        return {worker: said.get(worker.pid) for worker in sorted(self.workers())}

    def owner(self) -> tuple[int, int]:
        """Returns the user and group that the workers read .env as."""
        for worker in self.workers():
            try:
                entry = (_PROC / str(worker.pid)).stat()
            except OSError:
                continue
            return entry.st_uid, entry.st_gid
        return os.getuid(), os.getgid()

    def reload(self) -> None:
        """Sends SIGHUP.

        Raises:
            Refusal: the server has just ended, or is not ours to send signals to.
        """
        try:
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, signal.SIGHUP)
            elif self.is_alive():
                os.kill(self.pid, signal.SIGHUP)
        except OSError as error:
            raise Refusal(f"cannot reload process {self.pid}: {error.strerror}") from None

    def _words_told_by(self, deployment: Deployment, uid: int) -> tuple[str, ...]:
        """The command line as a worker knows it, if that worker's user is the master's: it will be executed."""
        told = [each for each in deployment.testimonies().values() if each.master == self.pid]
        words = next((each.command for each in told if each.owner == uid), ())
        return words if gunicorn_arguments(words) is not None else ()

    def _children(self) -> dict[int, Worker]:
        children = {}
        for pid in _pids():
            state = process_state(pid)
            if state is not None and state.parent == self.pid:
                children[pid] = Worker(pid, state.started)
        return children

    def _is_worker(self, pid: int) -> bool:
        try:
            words = _words(pid)
        except OSError:
            return False
        if words[0].startswith(f"{_TITLE}worker"):
            return True
        return words == self._words and not _is_successor(pid, self.pid)


class _Doubt(Exception):
    """Why a process is not taken for a gunicorn of this directory."""


def name_of(pid: int) -> str:
    """Returns a process's command for a message, without its options, which may be long or secret."""
    try:
        words = [word for word in _words(pid) if not word.startswith("-")]
    except OSError:
        return "ended"
    return " ".join(os.path.basename(word) for word in words[:2])


def _is_master(pid: int, parent: int, words: list[str], environ: Mapping[str, str]) -> bool:
    """Whether it is a gunicorn that nobody has forked: a worker has its master's command line."""
    if words[0].startswith(_TITLE):
        return words[0].startswith(f"{_TITLE}master")
    if gunicorn_arguments(words) is None:
        return False
    try:
        return _words(parent) != words or environ.get("GUNICORN_PID") == str(parent)
    except OSError:
        return True


def _is_successor(pid: int, master: int) -> bool:
    """Whether USR2 has made the master start this process, which is told so by a variable."""
    try:
        return _environ(pid).get("GUNICORN_PID") == str(master)
    except OSError:
        return False


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]


def _works_here(pid: int) -> bool:
    try:
        return os.path.samefile(_PROC / str(pid) / "cwd", ".")
    except OSError:
        return False


def _handle_of(pid: int) -> int | None:
    """A descriptor that means this process and never another one; None where the system has no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _words(pid: int) -> list[str]:
    text = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="surrogateescape")
    return text.removesuffix("\0").split("\0")


def _environ(pid: int) -> dict[str, str]:
    text = (_PROC / str(pid) / "environ").read_bytes().decode(errors="surrogateescape")
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def _groups(pid: int) -> tuple[int, ...]:
    found = re.search(r"^Groups:(.*)$", (_PROC / str(pid) / "status").read_text(), re.MULTILINE)
    return tuple(map(int, found[1].split())) if found else ()
