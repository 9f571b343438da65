"""Runs blocking functions on the event loop itself: each in a greenlet, which yields where a socket would block.

No thread per call. What a client does between two sockets runs in the loop's thread and holds everybody up, so a
watchdog names code that does so for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar, cast

import greenlet

from ..errors import DeadlineExceeded
from ..wire import waiting
from . import loop_watchdog
from .admission import NOT_STARTED
from .loop_waits import Waits, settle, waits_of
from .threads import Job, WorkerPool

__all__ = ["run"]

_T = TypeVar("_T")

# A signal's handler may raise the first anywhere in the loop's thread, and who ends a greenlet the second in it.
_LETS_PASS = (Exception, KeyboardInterrupt, greenlet.GreenletExit)
_STRETCH_S = 0.005  # for which a call may run before it gives way to others, although it need not wait


async def run(pool: WorkerPool, function: Callable[[], _T], *, deadline: float | None = None) -> _T:
    """Awaits `function()` in a slot of the pool, on the running event loop.

    Args:
        deadline: a moment on `time.monotonic()`; None waits without limit.

    Raises:
        as WorkerPool.run.

    Threads: the loop's, in which `function` runs, too. It must block by nothing but watched sockets and `time.sleep`.
    """
    loop = asyncio.get_running_loop()
    if deadline is not None and deadline <= time.monotonic():
        raise DeadlineExceeded(NOT_STARTED)
    job = Job(pool, function, getattr(function, "abort", None), deadline)
    job.lets_pass = _LETS_PASS
    turn = _Turn(loop)
    job.turn, job.notify = turn, turn.set  # type: ignore[assignment]  # as an Event's
    waits = waits_of(loop)
    if not pool.admit(job):
        await _its_turn(job, turn, waits)
    timer = None
    if deadline is not None:
        end = functools.partial(contextvars.copy_context().run, pool.give_up, job, "deadline")
        timer = waits.at(deadline, end)
    waiter = _GreenletWaiter(loop, waits)
    loop_watchdog.register(loop, job, waiter)
    try:
        return await _in_greenlet(job, waiter)  # type: ignore[no-any-return]
    finally:
        loop_watchdog.unregister(loop, job)
        if timer is not None:
            timer.cancel()


class _Turn:
    """What an Event is to a thread that waits for its slot.

    Threads: `set` any, the rest the loop's.
    """

    _come: asyncio.Future[bool] | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def set(self) -> None:
        """Its turn has come, or the pool was closed."""
        self._loop.call_soon_threadsafe(self._tell, True)

    def awaited(self) -> asyncio.Future[bool]:
        """What is settled when its turn has come; asked for before the loop goes on, which `set` needs to tell it."""
        self._come = self._loop.create_future()
        return self._come

    def _tell(self, value: bool) -> None:
        if self._come is not None:  # most have a slot at once
            settle(self._come, value)


async def _its_turn(job: Job, turn: _Turn, waits: Waits) -> None:
    come, timer = turn.awaited(), None
    if job.deadline is not None:
        timer = waits.at(job.deadline, functools.partial(settle, come, False))
    try:
        await come  # when it was not its turn, Job.run raises what has become of it
    except asyncio.CancelledError:
        job.pool.give_up(job, "cancelled")
        raise
    finally:
        if timer is not None:
            timer.cancel()


async def _in_greenlet(job: Job, waiter: _GreenletWaiter) -> Any:
    """Runs the job; a cancellation of the awaiting task is its end, whatever the client makes of that."""
    kept = _KeptGreenlet.taken()
    waiter.greenlet = kept.greenlet
    job.context.run(waiting.set_current, waiter)
    ended: BaseException | None = None
    kept.errand.job = job
    while (future := _step(kept, job)) is not None:
        try:
            await future
        except BaseException as exc:  # cancelled, or nobody drives this coroutine any more
            job.pool.give_up(job, "cancelled")
            waiter.wake()  # what it waits for from now on it does not get
            if waiter.is_elsewhere():
                # Its memory is collected in another thread, which cannot go on with its greenlet.
                job.pool.finish(job)
                raise
            ended = exc
    waiter.greenlet = None  # another job runs in it
    result, error = kept.errand.outcome()
    kept.give_back()
    try:
        if error is not None and (ended is None or not isinstance(error, Exception)):
            raise error
        if ended is not None:
            raise ended
        return result
    finally:
        error = ended = None  # whose tracebacks hold this frame


def _step(kept: _KeptGreenlet, job: Job) -> asyncio.Future[bool] | None:
    """Lets the job go on until it waits, or has ended; gives the future that it waits for, None at its end."""
    before = loop_watchdog.begin(job)
    try:
        return kept.greenlet.switch()  # type: ignore[no-any-return]
    finally:
        loop_watchdog.end(before)


class _KeptGreenlet:
    """A greenlet that runs one job after the other: a new one's stack is new memory, a system call and page faults.

    Threads: the one that has made it.
    """

    def __init__(self) -> None:
        self.errand = _Errand()
        self.greenlet: Any = greenlet.greenlet(self.errand.run_each)

    @classmethod
    def taken(cls) -> _KeptGreenlet:
        """One that has nothing to do."""
        if not _local.idle:
            return cls()
        kept: _KeptGreenlet = _local.idle.pop()
        # The loop may run in another greenlet than when this one was made.
        kept.greenlet.parent = greenlet.getcurrent()
        return kept

    def give_back(self) -> None:
        """Its job has ended, and it may have the next one."""
        if len(_local.idle) < _MOST_KEPT and not self.greenlet.dead:
            _local.idle.append(self)


class _Errand:
    """A greenlet's job of now, and what that has returned or raised.

    It does not refer to the greenlet: that ends when nobody has it any more.
    """

    job: Job | None = None
    result: Any = None
    error: BaseException | None = None

    def run_each(self) -> None:
        """Runs the job and yields, again and again."""
        while True:
            try:
                self.result = cast("Job", self.job).run()
            except BaseException as exc:
                self.error = exc
                if isinstance(exc, greenlet.GreenletExit):  # it is to end: nobody will come back to it
                    return
            greenlet.getcurrent().parent.switch(None)

    def outcome(self) -> tuple[Any, BaseException | None]:
        """What came of the job, which is forgotten here."""
        result, error = self.result, self.error
        self.job = self.result = self.error = None
        return result, error


_MOST_KEPT = 128  # of one thread: some 20 KB each


class _Local(threading.local):
    def __init__(self) -> None:
        self.idle: list[_KeptGreenlet] = []


_local = _Local()


class _GreenletWaiter:
    """The waiting.Waiter of one job."""

    greenlet: Any = None  # in which the job runs
    _is_woken = False
    _future: asyncio.Future[bool] | None = None  # of the wait of now

    def __init__(self, loop: asyncio.AbstractEventLoop, waits: Waits) -> None:
        self._loop = loop
        self._waits = waits
        self._thread_id = threading.get_ident()
        self._goes_on_since = time.monotonic()

    def is_here(self) -> bool:
        return greenlet.getcurrent() is self.greenlet

    def is_elsewhere(self) -> bool:
        """Whether the running code is that of another thread than its loop's."""
        return threading.get_ident() != self._thread_id

    def wait_for(self, sock: socket.socket, *, writes: bool, timeout_s: float | None) -> bool:
        future, number = self._loop.create_future(), sock.fileno()
        self._waits.add(number, future, writes=writes)
        try:
            return self._wait(future, timeout_s)
        finally:
            self._waits.remove(number, future, writes=writes)

    def give_way(self) -> None:
        if time.monotonic() - self._goes_on_since > _STRETCH_S:
            self.sleep(0.0)

    def sleep(self, seconds: float) -> None:
        self._wait(self._loop.create_future(), seconds)

    def run_in_thread(self, function: Callable[[], Any]) -> Any:
        future, outcome = self._loop.create_future(), Future[Any]()

        def run() -> None:
            try:
                outcome.set_result(function())
            except Exception as exc:
                outcome.set_exception(exc)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(settle, future, True)

        # Not one of the pool's: it would hold a slot, and what it runs may block for as long as it likes.
        threading.Thread(target=run, name="llm-lookup", daemon=True).start()
        if not self._wait(future, None):
            raise TimeoutError("the call was ended")
        return outcome.result()

    def wake(self) -> None:
        self._is_woken = True
        future = self._future
        if future is None:
            return
        if not self.is_elsewhere():
            settle(future, False)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(settle, future, False)

    def forget_task(self) -> None:
        """Its loop was closed, and nobody will go on with its task, which ends when nobody refers to it."""
        future = self._future
        if future is not None:
            with contextlib.suppress(
                RuntimeError
            ):  # the loop is closed: the future tells nobody, and forgets whom
                future.cancel()

    def _wait(self, future: asyncio.Future[bool], timeout_s: float | None) -> bool:
        """Lets the loop go on until the future is settled; whether it is what was waited for."""
        self._future = future
        timer = None
        try:
            if self._is_woken:
                return False
            if timeout_s is not None:
                timer = self._waits.at(time.monotonic() + timeout_s, functools.partial(settle, future, False))
            self.greenlet.parent.switch(future)
            return future.done() and not future.cancelled() and future.result()
        finally:
            self._future, self._goes_on_since = None, time.monotonic()
            if timer is not None:
                timer.cancel()
