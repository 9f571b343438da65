"""A lock that a forked child can take, whichever thread of the parent held it at the fork."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

__all__ = ["ForkSafeLock"]

_RLock: Any = type(threading.RLock())  # a base class, so that `with` costs no Python function


class ForkSafeLock(_RLock):  # type: ignore[misc]
    """A reentrant lock for `with`, free in a forked child.

    A child has only the thread that forked: what another thread of its parent held would stay locked in it for ever.
    What the forking thread itself holds, it holds in the child too. What a lock guarded may be half changed in a
    child: its owner must make that anew.

    Threads: any; blocks while another thread is inside.
    """

    def __init__(self) -> None:
        super().__init__()  # gevent puts a class written in Python here, which needs it
        _locks.add(self)


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lock in _locks:
        if lock.acquire(blocking=False):  # nobody's, or this thread's
            lock.release()
        else:
            lock._at_fork_reinit()  # as the standard library does it for its own locks


os.register_at_fork(after_in_child=_after_fork_in_child)
