"""One event loop per process for all async views, instead of Flask's new thread and new loop per request."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from flask import Flask

__all__ = ["SharedLoop"]

_UNSET = object()


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
            return _run(func(*args, **kwargs))

        return run


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    loop = _process_loop()
    if threading.current_thread() is _thread:
        coroutine.close()
        raise RuntimeError("an async view cannot block on the event loop that runs it: await it instead")
    future = None
    try:
        future = asyncio.run_coroutine_threadsafe(_finish(coroutine), loop)
        result, error, context = future.result()
    except BaseException:  # this thread is being ended, e.g. by gunicorn's SystemExit: nobody waits any more
        if future is not None:
            future.cancel()
        raise
    for variable, value in context.items():
        if variable.get(_UNSET) is not value:
            variable.set(value)
    if error is not None:
        raise error
    return result


async def _finish(
    coroutine: Coroutine[Any, Any, Any],
) -> tuple[Any, BaseException | None, contextvars.Context]:
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


_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None  # guarded by _lock
_thread: threading.Thread | None = None  # guarded by _lock
_of_parents: list[asyncio.AbstractEventLoop] = []  # kept: collecting one would touch its parent's descriptors


def _process_loop() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    if _loop is None:
        with _lock:
            if _loop is None:
                loop = asyncio.new_event_loop()
                # A daemon: an idle loop must not keep a process alive.
                thread = threading.Thread(target=loop.run_forever, name="shared-loop", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads in this process
                    loop.close()
                    raise
                _loop, _thread = loop, thread
    return _loop


def _after_fork_in_child() -> None:
    global _loop, _thread, _lock
    if _loop is not None:
        _of_parents.append(_loop)
    _loop, _thread, _lock = None, None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
