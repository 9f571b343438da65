"""A bounded pool of threads that event loops can await, and that blocking callers share.

The only module that knows executors.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

from ..errors import DeadlineExceeded, DeepSeekError, Overloaded, PoolClosed
from ..events import CallAborted, PoolChanged, emit
from .admission import CLOSING, NOT_STARTED, Admission, Ticket
from .daemons import DaemonExecutor, WorkItem, before_exit, wait_at_exit
from .deadlines import Deadline, wake

__all__ = ["Job", "WorkerPool", "all_pools"]

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)

_ADMITTED = {True: PoolChanged(busy=1), False: PoolChanged(queued=1)}
_LEFT = {"granted": PoolChanged(busy=-1), "running": PoolChanged(busy=-1), "queued": PoolChanged(queued=-1)}
_FOLLOWED, _REJECTED = PoolChanged(queued=-1, busy=1), PoolChanged(rejected=1)
_WAITED = "%d calls waited up to %.1f s for one of %d workers: LLM_MAX_WORKERS is the number to raise"

# The call that the running code is part of, also on an event loop that the call's thread waits for.
_inside: contextvars.ContextVar[Job | None] = contextvars.ContextVar("llm_job", default=None)


class WorkerPool:
    """Runs blocking functions for any number of event loops, in turn and at once, and admits blocking callers.

    A function may offer a method `abort(reason: str)`: the pool calls it, from another thread, when the function
    is running and nobody waits for it any more ("deadline", "cancelled", "closing"). It should make the function
    return soon and must not block or raise. Without it the function keeps its thread until it ends by itself.

    Args:
        workers: calls that run at once, each in a thread that is started when it is needed, at least 1.
        queue_limit: calls that may wait for a slot, 0 for none.

    Threads: every method may be called from any thread and any event loop; `run` blocks none of them. After a
        fork the child's pool is empty and open, whatever the parent's was doing.
    """

    def __init__(self, workers: int, queue_limit: int) -> None:
        self._admission = Admission(workers, queue_limit)  # guarded by _lock
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._admission = Admission(self._admission.workers, self._admission.queue_limit)
        self._lock = threading.RLock()  # taken by itself, which costs no Python function
        self._changed = threading.Condition(self._lock)
        self._jobs: set[Job] = set()  # guarded by _lock; admitted and not ended
        self._closed = False  # guarded by _lock
        # What wakes those that wait for a later job, each added and taken out in one step.
        self.at_close: set[Callable[[], object]] = set()
        self._was_told = False  # guarded by _lock; whether a PoolChanged has counted the workers
        self._executor = DaemonExecutor(self._admission.workers, "llm-worker")

    @property
    def workers(self) -> int:
        """How many calls run at once."""
        return self._admission.workers

    async def run(
        self, function: Callable[..., _T], /, *args: Any, deadline: float | None = None, **kwargs: Any
    ) -> _T:
        """Awaits `function(*args, **kwargs)` on a worker thread, with a copy of the caller's contextvars.

        Called from inside of a call on the same pool, it borrows an idle worker. When there is none it gets no
        slot, for which it might wait for ever: the outer call's worker, which waits, is stood in for by one further
        thread, and ends after that. So no more calls run at once than there are workers.

        Args:
            deadline: a moment on `time.monotonic()`; None waits without limit.

        Raises:
            Overloaded: no slot is free, or by the pace of the last calls `function` could not end before the
                deadline; it was not called.
            DeadlineExceeded: the deadline passed, in the queue (`function` was not called) or while it ran.
            PoolClosed: the pool was closed before `function` was called or while it ran.
            RuntimeError: no asyncio event loop runs here; `function` was not called.
            asyncio.CancelledError: the waiting task was cancelled; a queued call is removed, a running one aborted.
        """
        loop = asyncio._get_running_loop() or _no_loop()
        if deadline is not None and deadline <= time.monotonic():
            raise DeadlineExceeded(NOT_STARTED)
        job = Job(
            self, functools.partial(function, *args, **kwargs), getattr(function, "abort", None), deadline
        )
        job.future = loop.create_future()
        job.notify = functools.partial(loop.call_soon_threadsafe, wake, job.future)
        waiter = self._start(job, loop)
        # Weak: the loop alone has it, so that its `close` is noticed.
        timer = None
        if deadline is not None:
            timer = weakref.ref(loop.call_later(deadline - time.monotonic(), Deadline(job, waiter)))
        try:
            await waiter
        except (asyncio.CancelledError, GeneratorExit):  # or nobody drives this coroutine any more
            self.give_up(job, "cancelled")
            raise
        finally:
            job.notify = None
            handle = None if timer is None else timer()
            if handle is not None:
                handle.cancel()
        outcome, job.outcome = job.outcome, None
        if job.error is not None:  # whatever the function made of its end
            raise job.error
        if outcome is None:
            self.give_up(job, "deadline")
            raise DeadlineExceeded("The call's time is over.")
        result, error = outcome
        if error is None:
            return result  # type: ignore[no-any-return]
        try:
            raise error
        finally:
            del outcome, error  # the traceback holds this frame: a cycle

    def stats(self) -> dict[str, int]:
        """Counts of this moment: workers, busy, queued, queue_limit, rejected (since the start)."""
        with self._lock:
            return self._admission.stats()

    def has_room(self) -> bool:
        """Whether a slot or a place in the queue is free at this moment."""
        return self._admission.has_room()

    def is_closed(self) -> bool:
        """Whether it refuses new calls."""
        return self._closed

    def close(self, grace_s: float = 0.0) -> None:
        """Refuses new calls, lets those in flight finish for `grace_s` seconds, then ends the rest with PoolClosed.

        Idempotent. Blocks the calling thread for at most `grace_s`.
        """
        with self._lock:
            self._closed = True
        for wake_sleeper in list(self.at_close):
            wake_sleeper()
        with self._lock:
            self._changed.wait_for(lambda: not self._jobs, timeout=grace_s)
            rest = list(self._jobs)
            for job in rest:
                job.error = PoolClosed(CLOSING)
        for job in rest:
            self.give_up(job, "closing")
            job.tell_waiter()
        self._executor.shutdown(wait=False)

    def _start(self, job: Job, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Has the job run by a thread, at once or when it is its turn; gives what wakes its waiter."""
        waiter: asyncio.Future[None] = job.future
        if not self.admit(job):
            return waiter
        try:
            return loop.run_in_executor(job.executor, job)
        except RuntimeError as exc:  # no more threads, closed meanwhile, or Python is about to end
            self.finish(job)
            raise self._why_not_started(exc) from exc

    def _why_not_started(self, exc: RuntimeError) -> DeepSeekError:
        """What a job fails with for which the executor starts no thread."""
        if self._closed or "shutdown" in str(exc):
            return PoolClosed(CLOSING)
        return Overloaded("No thread can be started for the call.")

    def admit(self, job: Job) -> bool:
        """Gives the job a slot, or a place in the queue and False."""
        try:
            with self._lock:
                if self._closed:
                    raise PoolClosed(CLOSING)
                news = None if self._was_told else PoolChanged(workers=self._admission.workers)
                self._was_told = True
                outer = None if job.outer is None else job.outer_on_locked(self)
                if outer is not None and self._admission.running >= self._admission.workers:
                    job.slots, job.state, job.executor = 0, "granted", outer.deputy_locked()
                    self._jobs.add(job)
                    return True
                has_slot = self._admission.admit(job)
                self._jobs.add(job)
        except Overloaded:
            emit(_REJECTED)
            raise
        if news is not None:
            emit(news)
        emit(_ADMITTED[has_slot])
        return has_slot

    def _begin(self, job: Job) -> None:
        """The thread that runs the job is there; raises if nobody waits for it any more."""
        with self._lock:
            if job.error is not None:
                raise job.error
            if job.state == "queued":  # it waited in its own thread until its time was over
                raise DeadlineExceeded(NOT_STARTED)
            if job.state != "granted":
                raise asyncio.CancelledError
            self._admission.begin(job)

    def give_up(self, job: Job, reason: str) -> None:
        """Frees what a waiting job holds; aborts a running one, whose thread will free its slot."""
        with self._lock:
            was_given_up = job.given_up
            is_running = self._admission.give_up(job)
        if not is_running:
            self.finish(job)
        elif job.abort is not None and not was_given_up:
            job.abort(reason)
            emit(CallAborted(reason))

    def finish(self, job: Job) -> None:
        """The job has left its slot or the queue; the next one gets its turn, or the one after it."""
        following = self._release(job)
        while following is not None and not following.take_turn(self._executor):
            refused, following = following, self._release(following)
            refused.tell_waiter()

    def _release(self, job: Job) -> Job | None:
        """Frees what the job holds; returns the one that has the slot now."""
        with self._lock:
            if job not in self._jobs:  # finished before, or belongs to the parent of this process
                return None
            self._jobs.remove(job)
            news = _LEFT[job.state] if job.slots else None
            following = cast("Job | None", self._admission.end(job))
            waits = self._admission.waits_to_tell() if self._admission.waits else None
            job.function = None  # the executor keeps the husk until a thread is free; not the prompt with it
            self._changed.notify_all()
        if news is not None:
            emit(news)
        if following is not None:
            emit(_FOLLOWED)
        if waits is not None:
            _logger.warning(_WAITED, *waits, self._admission.workers)
        return following


class Job(Ticket, WorkItem):
    """One admitted call of a pool, from its slot to its thread's end.

    Attributes:
        lets_pass: what of the function's errors reaches the waiter as it is. SystemExit and its like would end the
            event loop that waits, and become a RuntimeError; a caller's own thread may end by them.

    Threads: as Ticket; `run` is called by the one thread that runs it.
    """

    lets_pass: tuple[type[BaseException], ...] = (Exception,)

    def __init__(
        self,
        pool: WorkerPool,
        function: Callable[[], Any],
        abort: Callable[[str], None] | None,
        deadline: float | None,
    ) -> None:
        self.deadline = deadline
        self.pool = pool
        self.function: Callable[[], Any] | None = function  # guarded by pool._lock; None once it ended
        self.abort = abort
        self.error: DeepSeekError | None = None  # guarded by pool._lock
        self.notify: Callable[[], Any] | None = None
        self.executor = pool._executor
        self.turn: threading.Event | None = None  # of a caller that waits in its own thread
        self._deputy: DaemonExecutor | None = None  # guarded by pool._lock
        # What the function gave or raised, for the event loop that waits.
        self.outcome: tuple[Any, BaseException | None] | None = None
        self.outer = _inside.get()
        while self.outer is not None and self.outer.state != "running":  # ended: its code went on elsewhere
            self.outer = self.outer.outer
        self.context = contextvars.copy_context()
        self.context.run(_inside.set, self)

    def outer_on_locked(self, pool: WorkerPool) -> Job | None:
        """The running job on this pool that waits for this one, if there is one."""
        outer = self.outer
        while outer is not None and (outer not in pool._jobs or outer.function is None):
            outer = outer.outer
        return outer

    def deputy_locked(self) -> DaemonExecutor:
        """The thread that stands in for this job's own, for the calls inside of it."""
        if self._deputy is None:
            self._deputy = DaemonExecutor(1, "llm-deputy")
        return self._deputy

    def take_turn(self, executor: DaemonExecutor) -> bool:
        """Lets its own thread go on, or has one of the pool run it; False if none can be started, as `error` says."""
        try:
            if self.turn is not None:
                self.turn.set()
            else:
                executor.submit(self)
            return True
        except RuntimeError as exc:  # no more threads in this process, or closed meanwhile
            with self.pool._lock:
                self.error = self.error or self.pool._why_not_started(exc)
            return False

    def run(self) -> Any:
        """Runs the function in this thread, and leaves the slot."""
        function = self.function
        try:
            self.pool._begin(self)
            assert function is not None
            try:
                return self.context.run(function)
            except StopIteration as exc:  # asyncio cannot carry it: the waiter would never wake
                raise RuntimeError("the call raised StopIteration") from exc
            except BaseException as exc:
                if isinstance(exc, self.lets_pass):
                    raise
                raise RuntimeError(f"the call raised {type(exc).__name__}") from exc
        finally:
            if self._deputy is not None:
                with self.pool._lock:
                    self.function = None  # from now on no nested call finds it
                # The slot stays taken while a nested call that was given up still runs.
                self._deputy.shutdown(wait=True, cancel_futures=True)
            # Before the waiter hears of the result, so that it finds the slot free.
            self.pool.finish(self)
            del self.context  # which refers to the job: as a cycle it would stay in memory until a collection

    def give_up(self, reason: str) -> None:
        """Nobody waits for it any more."""
        self.pool.give_up(self, reason)

    def tell_waiter(self) -> None:
        """Wakes whoever waits for the job, if its event loop still runs."""
        notify = self.notify
        if notify is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits
                notify()

    def __call__(self) -> None:
        """Runs the function in a thread of an executor, and hands what comes of it to the event loop that waits."""
        try:
            self._hand_over((self.run(), None))
        except BaseException as exc:
            self._hand_over((None, exc))

    def cancel(self) -> None:
        """No thread will run it: the executor was shut down."""
        self.pool.finish(self)
        self._hand_over((None, asyncio.CancelledError()))

    def _hand_over(self, outcome: tuple[Any, BaseException | None]) -> None:
        if self.notify is not None:  # or nobody waits any more, and the outcome would stay in memory
            self.outcome = outcome
            self.tell_waiter()


def _no_loop() -> NoReturn:
    raise RuntimeError(
        "an awaited call needs asyncio's event loop: use asyncio.run(), or call the blocking method"
    )


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def all_pools() -> list[WorkerPool]:
    """Returns the pools of this process, for whoever ends it."""
    return list(_pools)


@before_exit
def _wait_for_calls() -> None:
    for pool in all_pools():
        wait_at_exit(pool._changed, pool._jobs, pool._executor)


def _after_fork_in_child() -> None:
    # Neither the parent's threads nor the owners of its locks exist here.
    for pool in _pools:
        pool._reset()


os.register_at_fork(after_in_child=_after_fork_in_child)
