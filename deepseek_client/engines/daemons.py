"""An executor whose threads do not keep the process: one that nothing can end must not prevent its exit."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import queue
import threading
import weakref
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from .admission import Ticket

__all__ = ["DaemonExecutor", "WorkItem", "before_exit", "wait_at_exit"]

_T = TypeVar("_T")
_LOOK_AGAIN_S = 0.05
_PATIENCE_S = 1.0  # for threads whose calls were ended


class WorkItem:
    """What a thread of an executor does, and who is told of its end.

    Attributes:
        future: of asyncio or of concurrent.futures; gets a result when the item has ended. None if nobody waits.

    Threads: it is called in the executor's, or `cancel` is, in any; once.
    """

    future: Any = None

    def __call__(self) -> None:
        """Does it; never raises."""
        raise NotImplementedError

    def cancel(self) -> None:
        """No thread will do it."""
        raise NotImplementedError


class _Promise(WorkItem):
    """A function whose result goes into its Future."""

    future: Future[Any]

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.future = Future()
        self._function = function
        self._args = args
        self._kwargs = kwargs

    def __call__(self) -> None:
        future = self.future
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = self._function(*self._args, **self._kwargs)
        except BaseException as exc:
            future.set_exception(exc)
            del future, self  # the traceback holds this frame: a cycle
        else:
            future.set_result(result)

    def cancel(self) -> None:
        self.future.cancel()


class DaemonExecutor(ThreadPoolExecutor):
    """A ThreadPoolExecutor of daemon threads, for which the interpreter does not wait at its exit.

    What makes, feeds and ends the threads is its own: that of the base class has no room for a daemon.

    Args:
        workers: threads at most, each started when it is needed.
        name: what their names begin with.

    Threads: any.
    """

    def __init__(self, workers: int, name: str) -> None:
        super().__init__(workers, name)
        self._lock = threading.Lock()
        self._idle = 0  # guarded by _lock; threads that wait for an item nobody has put yet
        self._threads: set[threading.Thread] = set()  # guarded by _lock
        self._shutdown = False  # guarded by _lock

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Has a thread run the function.

        Returns:
            A Future of concurrent.futures. Of a WorkItem its own `future`, which the event loop's `run_in_executor`
            hands on as it is: to chain one of concurrent.futures to it would take four locks and two turns of the loop.

        Raises:
            RuntimeError: after `shutdown`, or when no thread can be started.
        """
        item = fn if isinstance(fn, WorkItem) else _Promise(fn, args, kwargs)
        with self._lock:
            if self._shutdown:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self._max_workers:
                self._start_thread_locked()
            self._work_queue.put(item)
        return item.future

    async def run(self, function: Callable[..., _T], *args: Any) -> _T:
        """Awaits `function(*args)` in a thread, with a copy of the caller's contextvars."""
        in_context = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self, in_context, function, *args)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuses new items.

        Args:
            wait: blocks until the threads have ended.
            cancel_futures: cancels what no thread has begun.
        """
        with self._lock:
            self._shutdown = True
            while cancel_futures and not self._work_queue.empty():
                with contextlib.suppress(queue.Empty):  # a thread was quicker
                    item = self._work_queue.get_nowait()
                    if item is not None:
                        item.cancel()
            self._work_queue.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _start_thread_locked(self) -> None:
        if not self._threads:
            # Made by whoever puts the first item: under gevent it belongs to the thread that has made it, and the
            # executor's own maker may be another.
            self._work_queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
            weakref.finalize(self, self._work_queue.put, None).atexit = False
        # The thread must not hold the executor, whose end is its own.
        thread = threading.Thread(
            target=_work,
            args=(self._work_queue, weakref.ref(self)),
            name=f"{self._thread_name_prefix}_{len(self._threads)}",
            daemon=True,
        )
        thread.start()
        self._threads.add(thread)


def before_exit(function: Callable[[], None]) -> Callable[[], None]:
    """Has the interpreter call it at its exit, when it waits for threads; `atexit` comes after that."""
    register: Callable[..., Any] = getattr(threading, "_register_atexit", atexit.register)  # since Python 3.9
    register(function)
    return function


def wait_at_exit(
    changed: threading.Condition, in_flight: Collection[Ticket], executor: DaemonExecutor
) -> None:
    """Waits until nothing is in flight but calls that were ended, and a moment longer for their threads to come back.

    The executor is shut down then.

    Args:
        changed: guards `in_flight`; notified when that shrinks.
    """
    with changed:
        while not changed.wait_for(lambda: all(ticket.given_up for ticket in in_flight), _LOOK_AGAIN_S):
            pass  # a call is given up without a notice
        changed.wait_for(lambda: not in_flight, _PATIENCE_S)
    executor.shutdown(wait=False)


def _work(items: queue.SimpleQueue[WorkItem | None], reference: weakref.ref[DaemonExecutor]) -> None:
    """What a thread does, until its executor is shut down or gone and the items before that are done."""
    while (item := items.get()) is not None:
        item()
        del item  # or a thread that waits would keep what the last one was about
        executor = reference()
        if executor is not None:
            with executor._lock:
                executor._idle += 1
        del executor
    items.put(None)  # for the next thread
