"""The running gunicorn of one directory: found by its pid file, looked at in /proc, told to reload."""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path

from .env_file import VARIABLE
from .refusal import Refusal

__all__ = ["Server"]

_PROC = Path("/proc")


class Server:
    """The gunicorn master that serves the current directory on a port.

    Attributes:
        pid: the master's.
        environ: the variables that it was started with, as far as /proc still knows them.

    Raises:
        Refusal: there is none, it is someone else's, or another master is taking over from it.

    Threads: one.
    """

    def __init__(self, port: int) -> None:
        if not (_PROC / "self" / "stat").exists():
            raise Refusal("need Linux's /proc, to see which workers run and what the server was started with")
        file = Path(f".gunicorn-{port}.pid")
        pid = _pid_in(file)
        if pid is None:
            raise Refusal(f"nothing runs here on port {port}: no {file} (PORT=... chooses another server)")
        try:
            is_here = os.path.samefile(_PROC / str(pid) / "cwd", ".")
            self._command = _command(pid)
            entries = (_PROC / str(pid) / "environ").read_bytes().decode(errors="surrogateescape").split("\0")
        except PermissionError:
            raise Refusal(
                f"process {pid} belongs to someone else: run this as its user, or as root"
            ) from None
        except OSError:
            raise Refusal(
                f"nothing runs here on port {port}: {file} is stale, process {pid} is gone"
            ) from None
        if not (is_here and re.search(rb"\bgunicorn\b|/serve\b", self._command)):
            raise Refusal(
                f"nothing runs here on port {port}: {file} is stale, process {pid} is something else"
            )
        successor = _pid_in(Path(f"{file}.2"))
        if successor and (_PROC / str(successor)).exists():
            raise Refusal(f"process {successor} is taking over from {pid} (USR2): end one of them first")
        self.pid = pid
        self.environ = dict(entry.split("=", 1) for entry in entries if "=" in entry)
        if self._command.startswith(b"gunicorn: "):
            # setproctitle wrote the title over them. Ours are a guess; what hides .env will show in the proof.
            self.environ = {name: value for name, value in os.environ.items() if name != VARIABLE}

    def why_deaf(self) -> str:
        """Why a reload would not make the server follow .env, as a sentence; "" if nothing tells against it."""
        arguments = self._command.decode(errors="surrogateescape").split("\0")
        try:
            arguments += shlex.split(self.environ.get("GUNICORN_CMD_ARGS", ""))
        except ValueError:  # gunicorn would not have started with it
            pass
        remedy = "the running server, and it comes before .env: take it out there and restart the server"
        if VARIABLE in self.environ:
            return f"{VARIABLE}={self.environ[VARIABLE]!r} is in the environment of {remedy}"
        for argument in arguments:
            if re.match(rf"(-e ?|--env=)?{VARIABLE}=", argument):
                return f"{argument!r} is in the command line of {remedy}"
        if "--preload" in arguments:
            return "the server runs with --preload, which froze its settings: restart it, best without"
        return ""

    def is_alive(self) -> bool:
        """Whether the master still runs."""
        try:
            return _command(self.pid) != b""  # a zombie has none
        except OSError:
            return False

    def workers(self) -> set[int]:
        """The pids of the workers that have not ended.

        They are children with the master's own command line, for a fork changes none; bin/serve's sandbox has another.
        """
        return {child for child in self._children() if self._is_worker(child)}

    def owner(self) -> tuple[int, int]:
        """The user and group that the workers read .env as."""
        for child in self.workers():
            try:
                entry = (_PROC / str(child)).stat()
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
            os.kill(self.pid, signal.SIGHUP)
        except OSError as error:
            raise Refusal(f"cannot reload process {self.pid}: {error.strerror}") from None

    def _children(self) -> list[int]:
        children = []
        for entry in _PROC.iterdir():
            if not entry.name.isdigit():
                continue
            try:
                # pid (name) state parent ...: the name may contain anything. Not every kernel has the file `children`.
                state, parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
            except OSError:  # it has just ended
                continue
            if int(parent) == self.pid and state not in (b"Z", b"X"):
                children.append(int(entry.name))
        return children

    def _is_worker(self, child: int) -> bool:
        try:
            command = _command(child)
        except OSError:
            return False
        # The second: with the package setproctitle.
        return command == self._command or command.startswith(b"gunicorn: worker")


def _command(pid: int) -> bytes:
    return (_PROC / str(pid) / "cmdline").read_bytes()


def _pid_in(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None
