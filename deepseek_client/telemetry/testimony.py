"""Each process that serves says in a small file how it makes its calls.

The files are what `deepseek-client toggle` proves a rollback by: it asks no worker, so it waits for none. They lie in
`.deepseek/` of the working directory, or in the directory that DEEPSEEK_RUN_DIR names, and only their owner reads
them. A file's name holds the process's identity: which machine and container, its id, and when it started.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import math
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "DIRECTORY_VARIABLE",
    "ProcessState",
    "Testimony",
    "process_state",
    "read_testimonies",
    "restore",
    "run_directory",
    "testify",
]

DIRECTORY_VARIABLE = "DEEPSEEK_RUN_DIR"

_DEFAULT_DIRECTORY = ".deepseek"
_LIMIT_BYTES = 16384  # a testimony has some hundreds, and a command line that setproctitle hides
_LOOK_AGAIN_S = 5.0
_TITLE = b"gunicorn: "  # what the package setproctitle lets gunicorn write over its command line

_logger = logging.getLogger(__name__)


class ProcessState(NamedTuple):
    """What /proc tells of a process that has not ended; `started` counts ticks since the machine's start."""

    parent: int
    started: int


@dataclass(frozen=True)
class Testimony:
    """What a living process has said about itself.

    Attributes:
        pid: the process.
        master: its parent now.
        mode: "async" or "sync"; "mixed" if several applications of the process differ.
        engine: what runs its calls.
        since: when it said so, in UTC.
        command: its command line if the package setproctitle hides that, else empty.
        owner: the user to whom the file belongs.
        config: settings that the application itself has given, by name: no environment shows them.

    Threads: immutable.
    """

    pid: int
    master: int
    mode: str
    engine: str
    since: str
    command: tuple[str, ...]
    owner: int
    config: Mapping[str, str] = field(default_factory=dict)


class _Said(NamedTuple):
    pid: int
    mode: str
    engine: str
    directory: Path
    config: Mapping[str, str]


_said: _Said | None = None  # the last testimony of this process, or of its parent
_looked_at = -math.inf  # when restore has last looked for the file


def testify(
    *,
    is_async: bool,
    engine: str,
    directory: str = "",  # noqa: PT028 - no test
    config: Mapping[str, str] | None = None,  # noqa: PT028 - no test
) -> None:
    """Writes this process's testimony, and lets each process that is forked from it write its own.

    Raises nothing and waits for nothing: a folder that cannot be written to costs the proof, not the service.

    Args:
        is_async: whether the process makes its calls asynchronously.
        engine: the name of what runs them.
        directory: where; "" for what `run_directory` says.
        config: what the application itself sets, without secrets.

    Threads: any.
    """
    global _said
    mode = "async" if is_async else "sync"
    if _said is None:
        atexit.register(_withdraw)
        os.register_at_fork(after_in_child=_after_fork)
    elif _said.pid == os.getpid() and _said.mode != mode:
        mode = "mixed"
    path = Path(directory or run_directory(os.environ))
    with contextlib.suppress(OSError):  # the working directory may be gone
        path = path.absolute()
    _said = _Said(os.getpid(), mode, engine, path, config or {})
    _write(_said)


def restore(clock: Callable[[], float] = time.monotonic) -> None:
    """Writes this process's testimony again if its file is gone or never could be written.

    Raises nothing. Looks no more than once in five seconds, so that it may be called for each request.

    Threads: any.
    """
    global _looked_at
    now = clock()
    if _said is None or now - _looked_at < _LOOK_AGAIN_S:
        return
    _looked_at = now
    state = process_state(os.getpid())
    if state and not _is_written(_said.directory / _file_name(os.getpid(), state)):
        _write(_said, is_again=True)


def run_directory(env: Mapping[str, str]) -> Path:
    """Returns the directory of the testimonies, relative to the working directory unless `env` says otherwise."""
    return Path((env.get(DIRECTORY_VARIABLE) or "").strip() or _DEFAULT_DIRECTORY)


def read_testimonies(directory: Path) -> list[Testimony]:
    """Returns what the processes that live have said, by pid; [] if there is no such directory.

    Raises:
        OSError: the directory may not be read.
    """
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    living = [each for each in _living(names) if each[0].endswith(".json")]
    found = [_read(directory / name, pid, parent) for name, pid, parent in living]
    return sorted(filter(None, found), key=lambda testimony: testimony.pid)


def process_state(pid: int) -> ProcessState | None:
    """Returns the state of a process; None if it has ended, or where there is no /proc."""
    try:
        # pid (name) state parent ...: the name may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else ProcessState(int(fields[1]), int(fields[19]))


def _write(said: _Said, *, is_again: bool = False) -> None:
    pid = os.getpid()
    state = process_state(pid)
    if state is None:  # without /proc nobody could prove it
        return
    file = said.directory / _file_name(pid, state)
    temporary = file.with_suffix(f".{threading.get_ident()}.tmp")
    try:
        content = {
            "pid": pid,
            "started": state.started,
            "master": state.parent,
            "mode": said.mode,
            "engine": said.engine,
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": _hidden_command(),
            "config": {**said.config},
        }
        # A working directory that has been removed under a running server shall not come back.
        makes_parents = not is_again or said.directory.name != _DEFAULT_DIRECTORY
        said.directory.mkdir(mode=0o700, parents=makes_parents, exist_ok=True)
        _remove_stale(said.directory)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            json.dump(content, stream)
        os.replace(temporary, file)
    except (OSError, ValueError) as error:
        _logger.log(
            logging.DEBUG if is_again else logging.INFO,
            "no testimony, so that deepseek-client toggle cannot prove how this process calls: %s",
            error,
        )
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _file_name(pid: int, state: ProcessState) -> str:
    return f"{_place()}-{pid}-{state.started}.json"


def _is_written(file: Path) -> bool:
    try:
        entry = os.lstat(file)
    except OSError:
        return False
    return stat.S_ISREG(entry.st_mode) and entry.st_size > 0


def _read(file: Path, pid: int, parent: int) -> Testimony | None:
    """What the process says in the file, and whose child it is; None if the file is none of ours, or gone."""
    try:
        # Never waits at a named pipe, and is not led elsewhere by a link.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            entry = os.fstat(descriptor)
            is_ours = stat.S_ISREG(entry.st_mode) and entry.st_uid in _trusted_users(file.parent, pid)
            text = os.read(descriptor, _LIMIT_BYTES + 1) if is_ours else b""
        finally:
            os.close(descriptor)
        if not 0 < len(text) <= _LIMIT_BYTES:
            return None
        content: dict[str, Any] = json.loads(text)
        words = {name: str(content[name]) for name in ("mode", "engine", "since")}
        command = tuple(map(str, content["command"]))
        config = {str(name): str(value) for name, value in dict(content.get("config", {})).items()}
        return Testimony(pid, parent, command=command, owner=entry.st_uid, config=config, **words)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _trusted_users(directory: Path, pid: int) -> set[int]:
    """Who may own the testimony of a process: its user, ours, root, and to whom the whole directory belongs."""
    # Not the owner of /proc/<pid>, which is root for a process that has given its rights up.
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    own = re.search(r"^Uid:\t[0-9]+\t([0-9]+)", status, re.MULTILINE)
    users = {0, os.geteuid(), os.stat(directory).st_uid}
    return users | {int(own[1])} if own else users


def _remove_stale(directory: Path) -> None:
    """Removes what processes of this machine and container have left that have ended."""
    names = [name for name in os.listdir(directory) if _identity(name)]
    for name in {*names} - {name for name, *_ in _living(names)}:
        with contextlib.suppress(OSError):
            os.unlink(directory / name)


def _living(names: list[str]) -> Iterator[tuple[str, int, int]]:
    """The names that mean processes which live, each with its process's id and parent."""
    for name in names:
        identity = _identity(name)
        state = identity and process_state(identity[0])
        if identity and state and state.started == identity[1]:
            yield name, identity[0], state.parent


def _identity(name: str) -> tuple[int, int] | None:
    """The pid and the start of whom a file's name means; None if it is not of this machine and container."""
    found = re.fullmatch(rf"{re.escape(_place())}-([0-9]{{1,9}})-([0-9]{{1,18}})\.(?:json|[0-9]+\.tmp)", name)
    return (int(found[1]), int(found[2])) if found else None


@functools.cache
def _place() -> str:
    """Names the machine since its start, and the container: a process's id means something there only."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        boot = "boot"
    try:
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{boot}-0"


def _hidden_command() -> list[str]:
    """The command line if it has been overwritten; without values of variables, which may be secrets."""
    if not Path("/proc/self/cmdline").read_bytes().startswith(_TITLE):
        return []
    return [re.sub(r"^((?:-e|--env=)?[A-Z][A-Z0-9_]*=).*", r"\1", word) for word in sys.orig_argv]


def _withdraw() -> None:
    state = process_state(os.getpid())
    if _said and state:
        with contextlib.suppress(OSError):
            os.unlink(_said.directory / _file_name(os.getpid(), state))


def _after_fork() -> None:
    # Not what a worker forks in its turn: gunicorn's master with --preload forks workers, a worker forks helpers.
    if _said and _said.pid == os.getppid():
        _write(_said)
