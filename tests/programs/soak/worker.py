"""What Linux says about the worker process, from outside."""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = ["Sample", "least", "sample_of"]


class Sample(NamedTuple):
    """One look at a process.

    Attributes:
        threads: all of them.
        descriptors: open ones, without `connections`.
        connections: sockets connected to the upstream, whatever their state.
        memory_bytes: anonymous memory, resident or swapped out: heap, stacks, arenas. Not RSS: that counts pages of
            files too, which the kernel takes away and brings back as it likes; not PSS: that changes when another
            process maps the same library. A leak of Python or of C is in here, and nothing else is.
    """

    threads: int
    descriptors: int
    connections: int
    memory_bytes: int


def sample_of(pid: int, upstream_port: int) -> Sample:
    """The process as it is now.

    Raises:
        OSError: it is gone.
    """
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        status = dict(line.split(":", 1) for line in file if ":" in line)
    sockets, others = _descriptors(pid)
    connections = len(sockets & _connected(pid, upstream_port))
    memory_kib = sum(int(status.get(name, "0").split()[0]) for name in ("RssAnon", "VmSwap"))
    return Sample(int(status["Threads"]), others + len(sockets) - connections, connections, memory_kib * 1024)


def least(samples: list[Sample]) -> Sample:
    """The least of each figure: what leaked is in all of them, what is about to go is not."""
    return Sample(*map(min, zip(*samples, strict=True)))


def _descriptors(pid: int) -> tuple[set[str], int]:
    """The inodes of its sockets, and how many other descriptors it has."""
    sockets, others = set(), 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            sockets.add(target[8:-1])
        else:
            others += 1
    return sockets, others


def _connected(pid: int, port: int) -> set[str]:
    """The inodes of the TCP sockets of its network that are connected to the port."""
    suffix = f":{port:04X}"
    with open(f"/proc/{pid}/net/tcp", encoding="ascii") as file:
        rows = [line.split() for line in file]
    return {row[9] for row in rows[1:] if row[2].endswith(suffix)}
