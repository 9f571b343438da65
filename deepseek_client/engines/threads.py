"""A bounded pool of threads that event loops can await.

The only module that knows executors. Two numbers bound it: `workers` threads run, `queue_limit` calls wait, and
one more is refused at once. A slot (the right to be queued or running) belongs to the call's thread, not to its
waiter: a waiter that gives up does not free a thread that still runs.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from ..errors import DeadlineExceeded, DeepSeekError, Overloaded, PoolClosed
from ..events import CallAborted, PoolChanged, emit

__all__ = ["WorkerPool", "close_default_pools", "default_pool"]

_T = TypeVar("_T")

# How fast the queue drains is told by the last calls that ended, if they are as many and as recent as this.
_MEASURED_CALLS = 10
_MEASURED_WITHIN_S = 60.0

# The call that the running code is part of, also on an event loop that the call's thread waits for.
_inside: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("llm_call", default=None)


class WorkerPool:
    """Runs blocking functions for any number of event loops, in turn and at once.

    A function may offer a method `abort(reason: str)`: the pool calls it, from another thread, when the function
    is running and nobody waits for it any more ("deadline", "cancelled", "closing"). It should make the function
    return soon and must not block or raise. Without it the function keeps its thread until it ends by itself.

    Args:
        workers: threads, started as they are needed, at least 1.
        queue_limit: calls that may wait for a thread, 0 for none.

    Threads: every method may be called from any thread and any event loop; `run` blocks none of them. After a
    fork the child's pool is empty and open, whatever the parent's was doing.
    """

    def __init__(self, workers: int, queue_limit: int) -> None:
        if workers < 1 or queue_limit < 0:
            raise ValueError(f"workers={workers}, queue_limit={queue_limit}: need at least 1 and at least 0")
        self._workers = workers
        self._queue_limit = queue_limit
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._calls: set[_Call] = set()  # guarded by _changed; admitted and not ended
        self._queued = 0  # guarded by _changed; slots of calls that wait
        self._running = 0  # guarded by _changed; slots of calls that run
        self._leaving = 0  # guarded by _changed; slots of running calls that nobody waits for any more
        self._rejected = 0  # guarded by _changed
        self._ran_s: deque[float] = deque(maxlen=_MEASURED_CALLS)  # guarded by _changed; of the last calls
        self._last_ended = 0.0  # guarded by _changed
        self._closed = False  # guarded by _changed
        self._told = (0, 0, 0, 0)  # guarded by _changed; what PoolChanged events add up to
        self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="llm-worker")

    async def run(
        self, fn: Callable[..., _T], /, *args: Any, deadline: float | None = None, **kwargs: Any
    ) -> _T:
        """Awaits `fn(*args, **kwargs)` on a worker thread, with a copy of the caller's contextvars.

        Called from inside of a call on the same pool, it borrows an idle worker. When there is none it gets no
        slot, for which it might wait for ever: the outer call's worker, which waits, is stood in for by one further
        thread, and ends after that. So no more calls run at once than there are workers.

        Args:
            deadline: a moment on `time.monotonic()`; None waits without limit.

        Raises:
            Overloaded: no slot is free, or by the pace of the last calls `fn` could not end before the deadline; it
                was not called. Its `retry_after_s` is the time in which what waits now should be
                done, None while that is not known.
            DeadlineExceeded: the deadline passed, in the queue (`fn` was not called) or while `fn` ran.
            PoolClosed: the pool was closed before `fn` was called or while it ran.
            asyncio.CancelledError: the waiting task was cancelled; a queued call is removed, a running one aborted.
        """
        if deadline is not None and deadline <= time.monotonic():
            raise DeadlineExceeded("The call's time was over before it was started.")
        context = contextvars.copy_context()
        work = functools.partial(context.run, fn, *args, **kwargs)
        call = _Call(self, work, getattr(fn, "abort", None), deadline)
        context.run(_inside.set, call)
        executor = self._admit(call)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T]
        try:
            future = loop.run_in_executor(executor, call)
        except RuntimeError as exc:  # no more threads in this process, or closed meanwhile
            self._leave(call)
            raise call.error or Overloaded("No thread can be started for the call.") from exc
        call.notify = functools.partial(loop.call_soon_threadsafe, future.cancel)
        if call.error is not None:  # closed before it could be notified
            future.cancel()
        # What asyncio.wait does, for one future: cancelling the task must not be taken for the future's end.
        waiter = loop.create_future()
        future.add_done_callback(lambda _: _wake(waiter))
        timer = None if deadline is None else loop.call_later(deadline - time.monotonic(), _wake, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self._give_up(call, "cancelled")
            future.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if not future.done():
            self._give_up(call, "deadline")
            future.cancel()
            raise DeadlineExceeded("The call's time is over.")
        if call.error is not None and (future.cancelled() or future.exception() is not None):
            raise call.error
        return future.result()

    def stats(self) -> dict[str, int]:
        """Counts of this moment: workers, busy, queued, queue_limit, rejected (since the start)."""
        with self._changing():
            return {
                "workers": self._workers,
                "busy": self._running,
                "queued": self._queued,
                "queue_limit": self._queue_limit,
                "rejected": self._rejected,
            }

    def is_closed(self) -> bool:
        """Whether it refuses new calls."""
        return self._closed

    def close(self, grace_s: float = 0.0) -> None:
        """Refuses new calls, lets those in flight finish for `grace_s` seconds, then ends the rest with PoolClosed.

        Idempotent. Blocks the calling thread for at most `grace_s`.
        """
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._calls, timeout=grace_s)
            rest = list(self._calls)
            for call in rest:
                call.error = PoolClosed("The service is shutting down.")
        for call in rest:
            self._give_up(call, "closing")
            call.tell_waiter()
        self._executor.shutdown(wait=False)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Holds the lock, and reports after it what has changed."""
        told = now = self._told
        try:
            with self._changed:
                try:
                    yield
                finally:
                    told, now = self._told, (self._workers, self._running, self._queued, self._rejected)
                    self._told = now
        finally:
            if now != told:
                emit(PoolChanged(*(new - old for new, old in zip(now, told, strict=True))))

    def _admit(self, call: _Call) -> ThreadPoolExecutor:
        """Gives the call a slot, and says which threads run it."""
        with self._changing():
            if self._closed:
                raise PoolClosed("The service is shutting down.")
            taken = self._queued + self._running
            outer = call.outer_on_locked(self)
            if taken >= self._workers and outer is not None:
                self._calls.add(call)
                return outer.deputy_locked()
            if taken >= self._workers:
                self._check_queue_locked(call)
            call.slots = 1
            self._queued += 1
            self._calls.add(call)
            return self._executor

    def _check_queue_locked(self, call: _Call) -> None:
        """Raises Overloaded if the call finds no place in the queue, or none that helps."""
        waiting = self._queued + self._running - self._workers
        pace_s, wait_s, reason = self._pace_locked(), None, None
        if pace_s is not None:
            # A call that was given up frees its worker in a moment.
            wait_s = max(0, waiting + 1 - self._leaving) * pace_s / self._workers
        if waiting >= self._queue_limit:
            reason = f"{self._queue_limit} calls wait already"
        elif pace_s and wait_s and call.deadline and time.monotonic() + wait_s + pace_s > call.deadline:
            reason = f"by their pace this call would not end in time after {waiting} that wait"
        if reason is not None:
            self._rejected += 1
            raise Overloaded(f"All {self._workers} workers are busy and {reason}.", retry_after_s=wait_s)

    def _pace_locked(self) -> float | None:
        """How long a call runs, by the last ones that ended; None if they are too few or too long ago."""
        is_recent = time.monotonic() - self._last_ended < _MEASURED_WITHIN_S
        if len(self._ran_s) < _MEASURED_CALLS or not is_recent:
            return None
        return sum(self._ran_s) / _MEASURED_CALLS

    def _start(self, call: _Call) -> bool:
        """Whether somebody still waits for the queued call, which runs from now on."""
        with self._changing():
            if call not in self._calls or call.error is not None:
                return False
            call.began = time.monotonic()
            if call.deadline is not None and call.began >= call.deadline:  # its waiter is about to notice
                call.error = DeadlineExceeded("The call's time was over before it was started.")
                self._leave_locked(call)
                return False
            call.running = True
            self._queued -= call.slots
            self._running += call.slots
            return True

    def _leave(self, call: _Call) -> None:
        with self._changing():
            self._leave_locked(call)

    def _leave_locked(self, call: _Call) -> None:
        if call not in self._calls:  # left before, or belongs to the parent of this process
            return
        self._calls.remove(call)
        if call.running:
            call.running = False
            self._running -= call.slots
            if call.given_up:
                self._leaving -= call.slots
            if call.slots:
                self._last_ended = time.monotonic()
                ran_s = self._last_ended - call.began
                # One that was cut short would have run for longer, at least as long as the others.
                self._ran_s.append(max(ran_s, self._pace_locked() or 0) if call.given_up else ran_s)
        else:
            self._queued -= call.slots
        call.work = None  # the executor keeps the husk until a thread is free; not the prompt with it
        self._changed.notify_all()

    def _give_up(self, call: _Call, reason: str) -> None:
        """Frees the slot of a queued call; aborts a running one, whose thread will free its slot."""
        with self._changing():
            if not call.running:
                self._leave_locked(call)
            if not call.running or call.given_up:
                return
            call.given_up = True
            self._leaving += call.slots
        if call.abort is not None:
            call.abort(reason)
            emit(CallAborted(reason))


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Call:
    """One admitted call, from its slot to its thread's end."""

    def __init__(
        self,
        pool: WorkerPool,
        work: Callable[[], Any],
        abort: Callable[[str], None] | None,
        deadline: float | None,
    ) -> None:
        self.pool = pool
        self.work: Callable[[], Any] | None = work  # guarded by pool._changed; None once it ended
        self.abort = abort
        self.deadline = deadline
        self.began = 0.0  # guarded by pool._changed
        self.given_up = False  # guarded by pool._changed; nobody waits for it any more
        self.slots = 0  # how many it takes: 0 when its caller's worker stands in
        self.running = False  # guarded by pool._changed
        self.error: DeepSeekError | None = None  # guarded by pool._changed
        self.notify: Callable[[], Any] | None = None
        self.deputy: ThreadPoolExecutor | None = None  # guarded by pool._changed
        self.outer = _inside.get()
        while self.outer is not None and not self.outer.running:  # ended: its code went on elsewhere
            self.outer = self.outer.outer

    def outer_on_locked(self, pool: WorkerPool) -> _Call | None:
        """The running call on this pool that waits for this one, if there is one."""
        outer = self.outer
        while outer is not None and (outer not in pool._calls or outer.work is None):
            outer = outer.outer
        return outer

    def deputy_locked(self) -> ThreadPoolExecutor:
        if self.deputy is None:
            self.deputy = ThreadPoolExecutor(1, thread_name_prefix="llm-deputy")
        return self.deputy

    def __call__(self) -> Any:
        work = self.work
        if work is None or not self.pool._start(self):
            raise self.error or asyncio.CancelledError()
        try:
            return work()
        except Exception as exc:
            if isinstance(exc, StopIteration):  # asyncio cannot carry it: the waiter would never wake
                raise RuntimeError("the call raised StopIteration") from exc
            raise
        except BaseException as exc:  # SystemExit and its like would end the waiter's event loop
            raise RuntimeError(f"the call raised {type(exc).__name__}") from exc
        finally:
            with self.pool._changed:
                self.work = None  # from now on no nested call finds it
            # The slot stays taken while a nested call that was given up still runs.
            if self.deputy is not None:
                self.deputy.shutdown(wait=True, cancel_futures=True)
            # Before the waiter hears of the result, so that it finds the slot free.
            self.pool._leave(self)

    def tell_waiter(self) -> None:
        if self.notify is not None:
            try:
                self.notify()
            except RuntimeError:  # its loop is closed: nobody waits
                pass


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
_defaults: dict[tuple[int, int], WorkerPool] = {}  # guarded by _defaults_lock
_defaults_lock = threading.Lock()


def default_pool(workers: int, queue_limit: int) -> WorkerPool:
    """The process-wide pool of this size, made at the first request. A closed one stays closed.

    Threads: any.
    """
    with _defaults_lock:
        pool = _defaults.get((workers, queue_limit))
        if pool is None:
            pool = _defaults[workers, queue_limit] = WorkerPool(workers, queue_limit)
        return pool


def close_default_pools(grace_s: float = 0.0) -> None:
    """Closes the process-wide pools, for a process that is about to leave. See WorkerPool.close."""
    with _defaults_lock:
        pools = list(_defaults.values())
    for pool in pools:
        pool.close(grace_s)


def _after_fork_in_child() -> None:
    # Neither the parent's threads nor the owners of its locks exist here.
    global _defaults_lock
    _defaults_lock = threading.Lock()
    for pool in _pools:
        pool._reset()


os.register_at_fork(after_in_child=_after_fork_in_child)
