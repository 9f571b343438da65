"""The pools that all clients of a process share, one for each size."""

from __future__ import annotations

from ..fork_safe import ForkSafeLock
from .threads import WorkerPool

__all__ = ["default_pool"]

_defaults: dict[tuple[int, int], WorkerPool] = {}  # guarded by _lock
_lock = ForkSafeLock()


def default_pool(workers: int, queue_limit: int) -> WorkerPool:
    """The process-wide pool of this size, made at the first request. A closed one stays closed.

    Threads: any.
    """
    pool = _defaults.get((workers, queue_limit))
    if pool is None:
        with _lock:
            pool = _defaults.get((workers, queue_limit))
            if pool is None:
                pool = _defaults[workers, queue_limit] = WorkerPool(workers, queue_limit)
    return pool
