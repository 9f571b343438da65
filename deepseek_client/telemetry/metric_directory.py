"""Where the processes of one server keep their metrics: a directory that is named by the server."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from . import metric_files

__all__ = ["directories_of", "directory", "first_process"]

_PREFIX = "deepseek-metrics-"
_LAST_PLACES = ("/tmp", "/dev/shm")  # the second is often writable where the root file system is not

_proc = Path("/proc")


def directory() -> Path:
    """The directory of this process's server, made if it is not there.

    It is a folder `deepseek` in PROMETHEUS_MULTIPROC_DIR, where the files of the application's own metrics are not.
    Without that variable it lies in TMPDIR, /tmp or /dev/shm and belongs to this user alone; a directory that
    somebody else has put there is not used.

    Raises:
        OSError: there is none, and none can be made.
    """
    given = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if given:
        path = Path(given, "deepseek")
        path.mkdir(parents=True, exist_ok=True)
        return path
    paths = _private_paths(first_process())
    # Where another process of the server has made it, also if the first place has room again.
    paths.sort(key=lambda path: not path.is_dir())
    refusals = []
    for path in paths:
        try:
            _make_private(path)
        except OSError as error:
            refusals.append(error)
        else:
            return path
    raise refusals[0]


def directories_of(pids: Iterable[int]) -> list[Path]:
    """Returns the directories of the servers that these processes work for, as far as they are there.

    Args:
        pids: processes of this machine and container. Each may be a server by itself, or the child of one.

    Threads: any.
    """
    given = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if given:
        return [path for path in [Path(given, "deepseek")] if path.is_dir()]
    firsts = {first for pid in pids for first in (pid, _parent_of(pid)) if first}
    paths = dict.fromkeys(path for first in sorted(firsts) for path in _private_paths(first))
    return [path for path in paths if path.is_dir() and _is_private(path)]


def first_process() -> int:
    """The id of the process that all processes of this server descend from, or of this one.

    A worker of a forking server (gunicorn, uWSGI) shows the command line of its parent, or a title that differs in
    one word. A worker that multiprocessing has started (hypercorn, granian, uvicorn) knows its parent, and so does
    a process that such a worker or a fork has started by multiprocessing.
    """
    module = sys.modules.get("multiprocessing.process")  # loaded in each process that it has started
    spawner = module.parent_process() if module else None
    pid: int = spawner.pid if spawner else os.getpid()
    parent = _parent_of(pid)
    if not parent:  # the first process of a container
        return pid
    own_title, title = _title(pid), _title(parent)
    if own_title and title:
        is_fork = own_title == title
    else:  # a system without /proc, or one that hides other users' processes
        is_fork = "gunicorn" in sys.modules and os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn")
    return parent if is_fork else pid


def _private_paths(first: int) -> list[Path]:
    """Where the directory of the server may be whose first process this is."""
    name = f"{_PREFIX}{first}-{_start_of(first)}"
    return [Path(place, name) for place in (os.environ.get("TMPDIR"), *_LAST_PLACES) if place]


def _title(pid: int) -> bytes:
    """What `ps` shows of a process, without the words that tell workers from their master; empty if unknown."""
    try:
        shown = (_proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""
    return re.sub(rb"\b(master|worker)\b( \d+)?", b"", shown).rstrip(b"\0 ")


def _parent_of(pid: int) -> int:
    fields = _stat_of(pid)
    if fields:
        return int(fields[1])
    return os.getppid() if pid == os.getpid() else 0


def _start_of(pid: int) -> int:
    """When a process started, in ticks since the system did; 0 if unknown."""
    fields = _stat_of(pid)
    return int(fields[19]) if fields else 0


def _stat_of(pid: int) -> list[bytes]:
    """The fields of /proc/<pid>/stat from the third one on: the second may hold blanks and parentheses."""
    try:
        return (_proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        _remove_those_of_ended_servers(path.parent)
    if not _is_private(path):
        raise PermissionError(f"{path} belongs to somebody else")


def _is_private(path: Path) -> bool:
    """Whether it is a directory, no link to one, that only this user can look into."""
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _remove_those_of_ended_servers(place: Path) -> None:
    for path in place.glob(f"{_PREFIX}*"):
        named = re.fullmatch(r"(\d{1,9})-(\d+)", path.name.removeprefix(_PREFIX))
        with contextlib.suppress(OSError):
            if named and _has_ended(*map(int, named.groups())) and _is_private(path):
                metric_files.remove_unused(path)


def _has_ended(pid: int, start: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        pass
    return _start_of(pid) != start
