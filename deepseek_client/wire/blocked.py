"""Ends what a thread is blocked in where Python cannot see it: C libraries, connections that are older than the wire.

Linux tells in which system call a thread waits, and with which arguments. What is found there is duplicated, looked at
again, and shut down by the duplicate: a number that was remembered may be a neighbour's connection a moment later.
"""

from __future__ import annotations

import os
import platform
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress

from . import greenlets

__all__ = ["end"]

_Arguments = list[int]
_POLLFD = struct.Struct("ihh")
_MOST_POLLED = 1024


def end(thread_id: int, but_not: Collection[int], is_at_work: Callable[[], bool]) -> None:
    """Shuts down the connections that a thread waits for, TCP and UNIX streams alone.

    Args:
        thread_id: as threading.get_ident() gives it.
        but_not: descriptors that are somebody else's to end.
        is_at_work: whether the thread is still at what is to be ended; it may have gone on to something else.

    Threads: any but that one.
    """
    if not _targets_of or greenlets.are_in_use():
        return
    native_ids = [each.native_id for each in threading.enumerate() if each.ident == thread_id]
    if not native_ids or native_ids[0] is None:
        return
    found = _look_at(native_ids[0])
    for descriptor in found[1] if found else ():
        if descriptor not in but_not:
            _end_one(descriptor, native_ids[0], found, is_at_work)


def _end_one(
    descriptor: int,
    native_id: int,
    found: tuple[str, list[int]] | None,
    is_at_work: Callable[[], bool],
) -> None:
    try:
        duplicate = os.dup(descriptor)
    except OSError:  # closed meanwhile
        return
    try:
        # The thread is still in the same call: it cannot have closed the descriptor, so the duplicate is its own.
        # Asked after that look: a worker that is back already may be in the same call for its next caller.
        if stat.S_ISSOCK(os.fstat(duplicate).st_mode) and _look_at(native_id) == found and is_at_work():
            with socket.socket(fileno=os.dup(duplicate)) as sock:
                if _is_a_connection(sock):
                    sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # it was not connected yet
        pass
    finally:
        os.close(duplicate)


def _is_a_connection(sock: socket.socket) -> bool:
    """Whether it is a stream to a server: no listener, no name lookup, no pair by which an event loop wakes itself."""
    if sock.type != socket.SOCK_STREAM or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return True
    return sock.family == socket.AF_UNIX and bool(sock.getpeername())


def _look_at(native_id: int) -> tuple[str, list[int]] | None:
    """The system call that the thread waits in, and the descriptors that it waits for; None if there is none."""
    try:
        with open(f"/proc/self/task/{native_id}/syscall", encoding="ascii") as file:
            call = file.read()
        number, *arguments = [int(word, 0) for word in call.split()]
        targets = _targets_of.get(number)
        return None if targets is None else (call, targets(arguments))
    except (OSError, ValueError, struct.error):  # it runs, it has ended, or the system does not tell
        return None


def _one(arguments: _Arguments) -> list[int]:
    return [arguments[0]]


def _polled(arguments: _Arguments) -> list[int]:
    address, count = arguments[:2]
    memory = _memory(address, _POLLFD.size * min(count, _MOST_POLLED))
    return [descriptor for descriptor, _, _ in _POLLFD.iter_unpack(memory) if descriptor >= 0]


def _selected(arguments: _Arguments) -> list[int]:
    count, *addresses = arguments[:3]
    found = set()
    for address in filter(None, addresses):  # to read, to write
        bits = int.from_bytes(_memory(address, (min(count, _MOST_POLLED) + 7) // 8), sys.byteorder)
        found |= {number for number in range(count) if bits >> number & 1}
    return sorted(found)


def _epolled(arguments: _Arguments) -> list[int]:
    with open(f"/proc/self/fdinfo/{arguments[0]}", encoding="ascii") as file:
        lines = [line.split() for line in file]
    return [int(words[1]) for words in lines if words and words[0] == "tfd:"]


def _memory(address: int, length: int) -> bytes:
    """This process's memory; by the system, which refuses an address that is gone where a pointer would crash."""
    with open("/proc/self/mem", "rb", buffering=0) as file:
        return os.pread(file.fileno(), length, address)


# Numbers of <asm/unistd.h>: read, readv, write, writev, connect, sendto, recvfrom, sendmsg, recvmsg; then those that
# wait for several descriptors.
_NUMBERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "x86_64": ((0, 19, 1, 20, 42, 44, 45, 46, 47), (7, 271), (23, 270), (232, 281, 441)),
    "aarch64": ((63, 65, 64, 66, 203, 206, 207, 211, 212), (73,), (72,), (22, 441)),
}


def _known_calls() -> dict[int, Callable[[_Arguments], list[int]]]:
    numbers = _NUMBERS.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 2**32 else None
    if numbers is None:
        return {}
    waits = zip(numbers, (_one, _polled, _selected, _epolled), strict=True)
    return {number: targets for same, targets in waits for number in same}


_targets_of: dict[int, Callable[[_Arguments], list[int]]] = {}
with suppress(OSError):
    _targets_of = _known_calls()
