"""One event loop per process for all async views, instead of Flask's new thread and new loop per request."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from flask import Flask

from ..fork_safe import ForkSafeLock

__all__ = ["SharedLoop", "finish", "run_on_shared_loop", "start_on_shared_loop", "take_over"]

_UNSET = object()

# What a coroutine returned, what it raised, and the context that it left behind.
_Outcome = tuple[Any, BaseException | None, contextvars.Context]


class SharedLoop:
    """Runs a Flask app's async views, and all else that Flask would give to asgiref, on the process's loop.

    `SharedLoop(app)`, or `SharedLoop().init_app(app)`. The loop's thread starts with the first async view of a
    process, so gunicorn's `preload_app` is safe, and each forked child has its own.

    Threads: any number of request threads wait on the loop at once. A view that blocks the loop delays them all:
    blocking calls belong on a pool. When a request's thread is ended, its view's task is cancelled.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Takes over the app's async views."""
        app.async_to_sync = self.async_to_sync  # type: ignore[method-assign]

    def async_to_sync(self, func: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """A function that runs the coroutine function `func` on the loop and blocks for what it returns.

        The coroutine sees the calling thread's contextvars (Flask's request among them); what it sets comes back.

        Raises:
            RuntimeError: from the function, if its thread is the loop's own and would wait for itself.
        """

        @functools.wraps(func)
        def run(*args: Any, **kwargs: Any) -> Any:
            return run_on_shared_loop(func(*args, **kwargs))

        return run


def run_on_shared_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs the coroutine on the process's loop, with the calling thread's contextvars, and blocks for its result.

    Raises:
        RuntimeError: the calling thread is the loop's own and would wait for itself.

    Threads: any but the loop's own.
    """
    loop = _process_loop()
    if asyncio._get_running_loop() is loop:
        coroutine.close()
        raise RuntimeError("an async view cannot block on the event loop that runs it: await it instead")
    future = None
    try:
        future = asyncio.run_coroutine_threadsafe(finish(coroutine), loop)
        outcome = future.result()
    except BaseException:  # this thread is being ended, e.g. by gunicorn's SystemExit: nobody waits any more
        if future is not None:
            future.cancel()
        raise
    return take_over(outcome)


def start_on_shared_loop(coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
    """Begins the coroutine on the process's loop, with the calling thread's contextvars; waits for nothing.

    Threads: any.
    """
    return asyncio.run_coroutine_threadsafe(coroutine, _process_loop())


async def finish(coroutine: Coroutine[Any, Any, Any]) -> _Outcome:
    """Awaits the coroutine; returns also what it raised, but for a cancellation. `take_over` unpacks it."""
    result, error = None, None
    task = asyncio.current_task()
    if task is not None:  # in asyncio's debug mode the log names a task that blocks the loop
        task.set_name(getattr(coroutine, "__qualname__", "view"))
    try:
        result = await coroutine
    except asyncio.CancelledError:
        raise
    except BaseException as exc:  # handed over: a SystemExit raised here would end the loop for every request
        error = exc
    return result, error, contextvars.copy_context()


def take_over(outcome: _Outcome) -> Any:
    """Sets the contextvars that the coroutine has set in the calling thread too; returns or raises as it did."""
    result, error, context = outcome
    for variable, value in context.items():
        if variable.get(_UNSET) is not value:
            variable.set(value)
    if error is not None:
        raise error
    return result


_lock = ForkSafeLock()
_loop: asyncio.AbstractEventLoop | None = None  # guarded by _lock
_owner_pid = 0  # guarded by _lock
_of_parents: list[asyncio.AbstractEventLoop] = []  # kept: collecting one would touch its parent's descriptors


def _process_loop() -> asyncio.AbstractEventLoop:
    global _loop, _owner_pid
    if _loop is not None and _owner_pid == os.getpid():
        return _loop
    with _lock:
        if _loop is not None and _owner_pid != os.getpid():
            _of_parents.append(_loop)
            _loop = None
        if _loop is None:
            # Made in its own thread: under gevent its selector belongs to the thread that made it.
            made: Future[asyncio.AbstractEventLoop] = Future()
            _start_thread(_serve, made)
            _owner_pid, _loop = os.getpid(), made.result()
        return _loop


def _start_thread(target: Callable[..., None], *args: Any) -> None:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        # A patched thread is a greenlet: the loop would count as running for all else on its real thread.
        monkey.get_original("_thread", "start_new_thread")(target, args)
    else:
        # A daemon: an idle loop must not keep a process alive.
        threading.Thread(target=target, args=args, name="shared-loop", daemon=True).start()


def _serve(made: Future[asyncio.AbstractEventLoop]) -> None:
    loop = asyncio.new_event_loop()
    made.set_result(loop)
    loop.run_forever()
