"""The files that a process of a server writes its metrics to, and those that the others have written.

prometheus_client names files by the process's id, so that every worker that was ever started leaves its own. Here a
process takes the lowest number that no living one has, and goes on counting in the files that the last owner left:
no count is lost, and there are as many files as processes that once lived at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import struct
import sys
from itertools import count
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

__all__ = ["UNUSABLE", "OwnFiles", "ValueFile", "files_in", "forget_the_dead", "is_whole", "remove_unused"]

UNUSABLE = (OSError, RuntimeError, ValueError, IndexError, struct.error)
"""What reading or opening a file raises that is missing, damaged, or has no room."""

_FIRST_BYTES = 16 * 1024
_HEAD_BYTES = 8
_logger = logging.getLogger(__name__)


class ValueFile:
    """Numbers by key in a file that other processes read.

    Its blocks are reserved before they are mapped into memory: the first write to a mapped block for which the disk
    has no room would end the process with SIGBUS.

    Raises:
        OSError: the disk has no room.

    Threads: one at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            _create(path)
        self._values = self._mapped(max(path.stat().st_size, _FIRST_BYTES))
        self._inode = path.stat().st_ino

    def get(self, key: str) -> float:
        """The number of a key; a new key begins with 0.0.

        Raises:
            OSError: the disk has no room for the key. Nothing has changed.
        """
        if key not in self._keys:
            needed = _bytes_of(key)
            while self._used + needed > self._size:
                smaller, self._values = self._values, self._mapped(2 * self._size)
                smaller.close()
            self._used += needed
            self._keys.add(key)
        number: float = self._values.read_value(key)[0]
        return number

    def set(self, key: str, number: float) -> None:
        """Changes the number of a key that `get` has returned; never fails."""
        self._values.write_value(key, number, 0.0)

    def is_in_place(self) -> bool:
        """Whether others still find the file under its name."""
        return _inode(self._path) == self._inode

    def close(self) -> None:
        """Writes nothing more; what was written stays."""
        self._values.close()

    def _mapped(self, size: int) -> MmapedDict:
        with self._path.open("r+b") as file:
            _reserve(file.fileno(), size)
        mapped = MmapedDict(os.fspath(self._path))
        self._keys = {key for key, _, _ in mapped.read_all_values()}
        self._used = _HEAD_BYTES + sum(map(_bytes_of, self._keys))
        self._size = size
        return mapped


class OwnFiles:
    """The files of one number in a directory, which this process alone writes as long as it lives.

    Raises:
        OSError: the directory cannot be used.

    Threads: one at a time, also beside `forget_the_dead`: what locks a number does not exclude another thread. A
    forked child closes its parent's and takes a number of its own.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[str, ValueFile] = {}
        # The lock goes with the process, however that ends.
        self.number, self._lock_file = next(
            (number, lock) for number in count() if (lock := _lock_of(directory, number)) is not None
        )
        try:
            self._take_over()
        except OSError:
            os.close(self._lock_file)
            raise

    def file(self, kind: str) -> ValueFile:
        """The one of a kind, "counter", "histogram" or "gauge_livesum", opened at the first time.

        Raises:
            OSError: the disk has no room, or the process no descriptor left.
        """
        if kind not in self._open:
            self._open[kind] = ValueFile(self.directory / f"{kind}_{self.number}.db")
        return self._open[kind]

    def are_in_place(self) -> bool:
        """Whether the number is still held and others find the files; not after somebody has cleaned up here."""
        is_held = _inode(_lock_path(self.directory, self.number)) == os.fstat(self._lock_file).st_ino
        return is_held and all(file.is_in_place() for file in self._open.values())

    def close(self) -> None:
        """Gives the number back: the next process goes on counting in these files."""
        for file in self._open.values():
            file.close()
        os.close(self._lock_file)

    def _take_over(self) -> None:
        _remove_gauges(self.directory, self.number)
        for file in self.directory.glob(f"*_{self.number}.db"):
            if not is_whole(file):
                _logger.warning("%s is not readable: what it counted is lost", file.name)
                file.unlink(missing_ok=True)


def files_in(directory: Path) -> list[str]:
    """The files that processes of the server have written, those that have ended included."""
    names = sorted(path.name for path in directory.iterdir())
    return [os.fspath(directory / name) for name in names if re.fullmatch(r"[a-z_]+_\d+\.db", name)]


def is_whole(file: Path | str) -> bool:
    """False for what a dead owner, a full disk or a stranger has left half written: it would break each reader."""
    try:
        with open(file, "rb") as stream:
            used = int.from_bytes(stream.read(4), sys.byteorder, signed=True)
            if not 0 <= used <= os.fstat(stream.fileno()).st_size:
                return False
        for _ in MmapedDict.read_all_values_from_file(file):
            pass
    except UNUSABLE:
        return False
    return True


def forget_the_dead(directory: Path, own: OwnFiles | None) -> None:
    """Removes what processes that have ended said about the present; their counts stay.

    Args:
        own: the files of this process; None if it has none in this directory.

    Threads: one at a time.
    """
    for number in _numbers_in(directory):
        with contextlib.suppress(OSError):
            # Touch it, or a cleaner of old temporary files deletes the lock and frees this number.
            os.utime(_lock_path(directory, number))
            # Our own lock must not even be opened: closing it would give it up.
            if own is not None and number == own.number:
                continue
            if (lock := _lock_of(directory, number)) is not None:
                _remove_gauges(directory, number)
                os.close(lock)


def remove_unused(directory: Path) -> None:
    """Removes the directory of a server that has ended, unless a process still has a number in it.

    Raises:
        OSError: there is more in it than metrics; that is left.
    """
    for number in _numbers_in(directory):
        lock = _lock_of(directory, number)
        if lock is None:
            return
        os.close(lock)
    for path in directory.iterdir():
        if path.suffix in (".db", ".lock", ".new"):
            path.unlink(missing_ok=True)
    directory.rmdir()


def _numbers_in(directory: Path) -> list[int]:
    return sorted(int(path.stem) for path in directory.glob("*.lock") if path.stem.isdecimal())


def _lock_path(directory: Path, number: int) -> Path:
    return directory / f"{number}.lock"


def _lock_of(directory: Path, number: int) -> int | None:
    """The descriptor that holds the number, None if another process has it."""
    lock = os.open(_lock_path(directory, number), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which a child would inherit
    except OSError as error:
        os.close(lock)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return None
        raise
    return lock


def _remove_gauges(directory: Path, number: int) -> None:
    for file in directory.glob(f"gauge_live*_{number}.db"):
        file.unlink(missing_ok=True)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _create(path: Path) -> None:
    """Makes an empty file of values; under its own name it is whole from the first moment on."""
    new = path.with_suffix(".new")
    try:
        with new.open("wb+") as file:
            _reserve(file.fileno(), _FIRST_BYTES)
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _reserve(file: int, size: int) -> None:
    """Makes the file that long, and has the disk keep every block of it.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            os.posix_fallocate(file, 0, size)
            return
        except OSError as error:
            # musl does not emulate what a file system cannot do.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    # What has been written has its blocks.
    content = os.pread(file, size, 0).ljust(size, b"\0")
    if os.pwrite(file, content, 0) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _bytes_of(key: str) -> int:
    """What an entry takes at most: its length, the key and padding, two doubles."""
    return 4 + len(key.encode()) + 8 + 16
