"""USE_ASYNC_DEEPSEEK=0: coroutines run in the request's own thread, without any event loop.

Calls then never suspend, so a coroutine that awaits nothing else needs no loop. One that does (`asyncio.gather`, say)
gets a private loop in the same thread. Which it is, its code tells before it runs; where that fails, it is learned.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from .loop import finish, take_over

__all__ = ["async_to_sync", "run_in_this_thread"]

_logger = logging.getLogger(__name__)

# Source: the documentation of asyncio; what needs a running loop, and what is had from one by name.
_NEED_A_LOOP = {
    *(
        "call_at",
        "call_later",
        "call_soon",
        "create_future",
        "create_task",
        "ensure_future",
        "run_in_executor",
    ),
    *("as_completed", "gather", "shield", "sleep", "timeout", "timeout_at", "to_thread", "wait", "wait_for"),
    *(
        "create_server",
        "create_subprocess_exec",
        "create_subprocess_shell",
        "open_connection",
        "start_server",
    ),
    *("Barrier", "BoundedSemaphore", "Condition", "Event", "LifoQueue", "Lock", "PriorityQueue", "Queue"),
    *("Semaphore", "TaskGroup", "open_unix_connection", "wrap_future"),
}
_OURS = __name__.partition(".")[0]

_needs_loop: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # by function, as its code tells
_met_no_loop: set[CodeType] = set()  # as it was learned


def async_to_sync(func: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """A function that runs the coroutine function `func` in its caller's thread.

    Threads: as `func`.
    """

    @functools.wraps(func)
    def run(*args: Any, **kwargs: Any) -> Any:
        function = getattr(func, "__func__", func)
        needs_loop = _needs_loop.get(function)
        if needs_loop is None:
            needs_loop = _needs_loop[function] = _names_what_needs_a_loop([func])
        return _run(func(*args, **kwargs), needs_loop)

    return run


def run_in_this_thread(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs the coroutine in the calling thread; returns or raises what it does.

    Threads: any that runs no event loop.
    """
    code, frame = getattr(coroutine, "cr_code", None), getattr(coroutine, "cr_frame", None)
    room = "" if frame is None else _root(frame.f_globals.get("__name__"))
    if code is None or frame is None or room in (_OURS, "asyncio"):
        return _run(coroutine, room == "asyncio")
    # The function of the coroutine is not to be had; its code under the same globals says the same.
    function = FunctionType(code, frame.f_globals, closure=tuple(CellType() for _ in code.co_freevars))
    return _run(coroutine, _names_what_needs_a_loop([function, *frame.f_locals.values()]))


def _run(coroutine: Coroutine[Any, Any, Any], needs_loop: bool) -> Any:
    code = getattr(coroutine, "cr_code", None)
    if needs_loop or code in _met_no_loop:
        return take_over(asyncio.run(finish(coroutine)))
    try:
        return _step(coroutine)
    except RuntimeError as exc:
        if code is not None and _is_for_want_of_a_loop(exc):
            _met_no_loop.add(code)
            _logger.warning("%s needs an event loop: from now on it has its own", code.co_name)
        raise


def _step(coroutine: Coroutine[Any, Any, Any]) -> Any:
    step: Callable[[], Any] = functools.partial(coroutine.send, None)
    try:
        while True:
            if step() is not None:  # asyncio.sleep(0) yields None: it only lets others go first
                step = functools.partial(coroutine.throw, RuntimeError("no running event loop"))
    except StopIteration as exc:
        return exc.value


def _is_for_want_of_a_loop(error: BaseException | None) -> bool:
    while error is not None:
        # asyncio's own words, and sniffio's for anyio and httpx.
        if isinstance(error, RuntimeError) and ("event loop" in str(error) or "async library" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _names_what_needs_a_loop(values: Iterable[Any]) -> bool:
    """Whether a function of these, or one that it names, names something of asyncio's that needs a loop."""
    pending, seen = [value for value in values if _is_function(value)], set()
    while pending:
        method = pending.pop()
        function = getattr(method, "__func__", method)
        if id(function) in seen or _root(function.__module__) in (_OURS, *sys.stdlib_module_names):
            continue
        seen.add(id(function))
        names = set(_names_in(function.__code__))
        known = [*_values_named(function, names), getattr(method, "__self__", None)]
        speaks_asyncio = "asyncio" in names or any(value is asyncio for value in known)
        if (speaks_asyncio and names & _NEED_A_LOOP) or any(_is_of_asyncio(value) for value in known):
            return True
        known += [_attribute(value, name) for value in known for name in names]
        pending += [value for value in known if _is_function(value)]
    return False


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _values_named(function: Any, names: set[str]) -> Iterator[Any]:
    yield from (function.__globals__[name] for name in names if name in function.__globals__)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not set yet
            pass


def _attribute(owner: Any, name: str) -> Any:
    if isinstance(owner, ModuleType):
        return vars(owner).get(name)
    return inspect.getattr_static(type(owner), name, None)


def _is_function(value: Any) -> bool:
    return isinstance(value, (FunctionType, MethodType))


def _is_of_asyncio(value: Any) -> bool:
    is_named = isinstance(value, (FunctionType, type)) and value.__name__ in _NEED_A_LOOP
    return is_named and _root(value.__module__) == "asyncio"


def _root(module: Any) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""
