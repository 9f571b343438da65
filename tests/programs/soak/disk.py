"""A small disk for what the application writes, which fills up and empties."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Disk", "running_disk"]

_SIZE = "256k"  # has room for the metrics of one worker, and for its testimony
_CLONE_NEWNS = 0x00020000  # linux/sched.h
_BALLAST = "ballast"
_BLOCK = b"x" * 4096


class Disk:
    """A file system of its own; without the right to mount one a plain folder, which never is full.

    Threads: only one at a time.
    """

    def __init__(self, path: Path, *, is_small: bool) -> None:
        self.path = path
        self.is_small = is_small

    def fill(self) -> None:
        """Removes whatever lies there, as somebody does who needs room, and takes all of it."""
        if not self.is_small:
            return
        for file in self.path.rglob("*"):
            if file.is_file():
                file.unlink(missing_ok=True)
        with contextlib.suppress(OSError), (self.path / _BALLAST).open("wb", buffering=0) as ballast:
            while ballast.write(_BLOCK):
                pass

    def empty(self) -> None:
        """There is room again."""
        (self.path / _BALLAST).unlink(missing_ok=True)


@contextlib.contextmanager
def running_disk(folder: Path) -> Iterator[Disk]:
    """The disk, in the folder, until the end of the block."""
    path = folder / "disk"
    path.mkdir()
    is_small = _has_mounts_of_its_own() and _mounted("-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(path))
    try:
        yield Disk(path, is_small=is_small)
    finally:
        if is_small:
            subprocess.run(["umount", "-l", str(path)], check=True)


def _has_mounts_of_its_own() -> bool:
    """Gives this thread, and what it starts, mounts that nobody else sees, and that end with them, however they end."""
    try:
        is_apart = ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0
    except AttributeError:  # no Linux
        return False
    return is_apart and _mounted("--make-rprivate", "/")


def _mounted(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    except OSError:  # there is no such command
        return False
