"""Which files of PROMETHEUS_MULTIPROC_DIR this process writes.

prometheus_client names them by the process's id, so that every worker that was ever started leaves its own. Here a
process takes the lowest number that no living one has, and goes on counting in the files that the last owner left:
no count is lost, and there are as many files as processes that once lived at the same time.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import sys
import threading
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

__all__ = ["forget_the_dead", "number"]

_logger = logging.getLogger(__name__)

# Also between threads of one process: its locks on files do not exclude each other.
_lock = threading.RLock()
_owner_pid = 0
_number = 0
_lock_file = -1  # open as long as the process lives: the lock goes with it, however the process ends


def number() -> int:
    """This process's number, taken at the first call and again after a fork.

    Threads: any.
    """
    if _owner_pid != os.getpid():
        with _lock:
            _take_number()
    return _number


def _take_number() -> None:
    global _owner_pid, _number, _lock_file
    if _owner_pid != os.getpid():
        directory = _directory()
        _number, _lock_file = next(
            (candidate, lock)
            for candidate in range(1_000_000)
            if (lock := _lock_of(directory, candidate)) is not None
        )
        _remove_gauges(directory, _number)
        for file in directory.glob(f"*_{_number}.db"):
            _remove_if_broken(file)
        _owner_pid = os.getpid()


def forget_the_dead() -> None:
    """Removes what processes that have ended said about the present; their counts stay.

    Threads: any.
    """
    directory = _directory()
    with _lock:
        locks = [file for file in directory.glob("*.lock") if file.stem.isdecimal()]
        for file in locks:
            candidate = int(file.stem)
            with contextlib.suppress(OSError):
                os.utime(file)  # or what cleans a directory of old files gives its number away
            # Our own file must not even be opened: closing it would give up the lock.
            if candidate != number() and (lock := _lock_of(directory, candidate)) is not None:
                _remove_gauges(directory, candidate)
                os.close(lock)


def _lock_of(directory: Path, candidate: int) -> int | None:
    """The descriptor that holds the number, None if another process has it."""
    lock = os.open(directory / f"{candidate}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which a child would inherit
    except OSError:
        os.close(lock)
        return None
    return lock


def _directory() -> Path:
    """Where the files are; made anew if somebody has cleaned it away: no metric is worth a service that is down."""
    directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _remove_if_broken(file: Path) -> None:
    """What a dead owner, a full disk or a stranger has left half written would break each process that adopts it."""
    try:
        with file.open("rb") as stream:
            used = int.from_bytes(stream.read(4), sys.byteorder, signed=True)
        if not 0 <= used <= file.stat().st_size:
            raise ValueError(f"it claims {used} bytes")
        for _ in MmapedDict.read_all_values_from_file(file):
            pass
    except (OSError, RuntimeError, ValueError, struct.error, IndexError):
        _logger.warning("%s is not readable: what it counted is lost", file.name)
        file.unlink(missing_ok=True)


def _remove_gauges(directory: Path, candidate: int) -> None:
    for file in directory.glob(f"gauge_live*_{candidate}.db"):
        file.unlink(missing_ok=True)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # its owner may be a thread of the parent


os.register_at_fork(after_in_child=_after_fork_in_child)
