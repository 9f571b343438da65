"""Runs blocking functions in their caller's own thread, in a slot of the pool: one limit for every way in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from .threads import Job, WorkerPool

__all__ = ["run"]

_T = TypeVar("_T")


def run(pool: WorkerPool, function: Callable[[], _T], *, deadline: float | None = None) -> _T:
    """Runs `function()` in the calling thread, when a slot of the pool is free.

    It waits in the same queue as the calls of `WorkerPool.run`, and is refused and aborted as those are.

    Args:
        deadline: a moment on `time.monotonic()` at which waiting for a slot ends; `function` keeps it itself.

    Raises:
        Overloaded, DeadlineExceeded, PoolClosed: as `WorkerPool.run`; `function` was not called.

    Threads: any; blocks until the function has ended.
    """
    job = Job(pool, function, getattr(function, "abort", None), deadline)
    job.lets_pass = (BaseException,)
    turn = job.turn = threading.Event()
    job.notify = turn.set
    try:
        if not pool.admit(job):
            left_s = threading.TIMEOUT_MAX if deadline is None else deadline - time.monotonic()
            turn.wait(min(max(0.0, left_s), threading.TIMEOUT_MAX))
    except BaseException:  # refused, or a signal's handler ends the waiting thread
        pool.finish(job)
        raise
    result: _T = job.run()
    return result
