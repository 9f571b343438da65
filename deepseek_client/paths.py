"""Blocking functions and whole clients, made async as they are: `asyncify`."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

from .calls.call import Call
from .calls.caller import Caller
from .calls.streams import AsyncStream
from .engines.threads import WorkerPool
from .facade import AsyncFacade
from .settings import Settings

__all__ = ["ClientPath", "PathCall", "asyncify", "call_of", "client_of", "is_asyncified", "with_settings"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


@overload
def asyncify(  # type: ignore[overload-overlap]
    function: Callable[_P, Iterator[_T]], *, pool: WorkerPool | None = None, settings: Settings | None = None
) -> Callable[_P, AsyncIterator[_T]]: ...
@overload
def asyncify(
    function: Callable[_P, _T], *, pool: WorkerPool | None = None, settings: Settings | None = None
) -> Callable[_P, Awaitable[_T]]: ...
@overload
def asyncify(
    function: object, *, pool: WorkerPool | None = None, settings: Settings | None = None
) -> Any: ...
def asyncify(function: Any, *, pool: WorkerPool | None = None, settings: Settings | None = None) -> Any:
    """Makes a blocking function, or all of a blocking client, async: it runs as any call, within limit and deadline.

    A function becomes an async function with the same parameters, and a generator function one for `async for`. Of a
    client, every method is reached by the client's own path: `await asyncify(client).chat.completions.create(...)`,
    `async for chunk in asyncify(client).chat.completions.create(..., stream=True)`, and `async with` around that, which
    ends the stream where the block ends.

    Args:
        function: anything that can be called is a function: it runs on one thread from its start to its end, so that it
            may use a client that is not thread-safe, as long as it hands back plain data. Anything else is a client; an
            AsyncFacade stands for the client that it wraps, with its pool, its settings and its `abort`.
        pool, settings: as for AsyncFacade; the environment is read at the first call.

    Raises:
        TypeError: it is an async function already.

    Threads: what it gives may be used on any event loop; a function, and a client's methods, run on up to
        LLM_MAX_WORKERS threads.
    """
    if isinstance(function, ClientPath):
        return function
    if isinstance(function, AsyncFacade):
        root = _Root(function.__wrapped__, pool, settings)
        root.caller = function.__facade_caller__
        return ClientPath(root)
    if not callable(function):  # first: to ask what `per_thread` makes for more would make a client
        return ClientPath(_Root(function, pool, settings))
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("asyncify() takes a blocking function; this one is async already")
    name = getattr(function, "__name__", type(function).__name__)
    return _function_by(
        ClientPath(_Root(SimpleNamespace(**{name: function}), pool, settings), (name,)), function
    )


def _function_by(path: ClientPath, function: Any) -> Any:
    """An async function that makes its calls by the path, which leads to this blocking one."""
    run: Any
    if inspect.isgeneratorfunction(function):
        run = functools.wraps(function)(lambda *args, **kwargs: path(*args, **kwargs))
    else:

        @functools.wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            return await path(*args, **kwargs)

    _paths[run] = path
    return run


# Of the functions that asyncify has made. An attribute of theirs would be taken over by who wraps one.
_paths: weakref.WeakKeyDictionary[Callable[..., Any], ClientPath] = weakref.WeakKeyDictionary()


class _Root:
    """The client that paths begin at, and who makes its calls."""

    def __init__(self, client: Any, pool: WorkerPool | None, settings: Settings | None) -> None:
        self.client = client
        self.pool = pool
        self.settings = settings

    @functools.cached_property
    def caller(self) -> Caller:
        settings = self.settings or Settings.from_env(os.environ)
        pool = self.pool or WorkerPool(settings.max_workers, settings.queue_limit)
        return Caller(self.client, settings, pool)


class _Arguments(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


_Steps = tuple[str | _Arguments, ...]


class ClientPath:
    """What lies on a client under some names, to be called.

    Nothing is looked up before the call, and then by its worker: an attribute may be a property that asks a server. The
    client's own thing is `__wrapped__`; names that begin with an underscore lie on it alone.

    Threads: any. dir(), docstrings and signatures look the thing up in the thread that wants them.
    """

    __slots__ = ("_path_root", "_path_steps")
    _path_root: _Root
    _path_steps: _Steps

    def __init__(self, root: _Root, steps: _Steps = ()) -> None:
        object.__setattr__(self, "_path_root", root)
        object.__setattr__(self, "_path_steps", steps)

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__" and all(isinstance(step, str) for step in self._path_steps):
            return _found(self._path_steps, self._path_root.client)
        if name.startswith("_"):
            raise AttributeError(f"{self!r} has no {name}: for what is private ask the client itself")
        return ClientPath(self._path_root, (*self._path_steps, name))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot set {name} by a path: set it on the client")

    def __call__(self, *args: Any, **kwargs: Any) -> PathCall:
        """A call of it, which begins when it is awaited, iterated or entered."""
        return PathCall(self._path_root, self._path_steps, _Arguments(args, kwargs))

    # A path never changes. What copies its attributes would find the client's.
    def __copy__(self) -> ClientPath:
        return self

    def __deepcopy__(self, memo: Any) -> ClientPath:
        return self

    def __dir__(self) -> list[str]:
        names = dir(getattr(self, "__wrapped__", None))
        return [name for name in names if not name.startswith("_")]

    def __repr__(self) -> str:
        return f"<asyncify {type(self._path_root.client).__name__}{_name(('', *self._path_steps))}>"


class _Docstring:
    """That of the client's own thing; of the class its own."""

    def __init__(self, of_class: str | None) -> None:
        self._of_class = of_class

    def __get__(self, path: ClientPath | None, owner: type) -> str | None:
        return self._of_class if path is None else inspect.getdoc(getattr(path, "__wrapped__", None))


ClientPath.__doc__ = _Docstring(ClientPath.__doc__)  # type: ignore[assignment]


class PathCall(Coroutine[Any, Any, Any]):
    """A call of something of a client, to be awaited, iterated by `async for`, or entered by `async with`.

    An attribute of it is a path that goes on from what it will give: `client.with_options(timeout=5).chat`; then all
    of it runs on the worker, in one call.

    Threads: that of one event loop.
    """

    __slots__ = (
        "_path_coroutine",
        "_path_has_begun",
        "_path_is_used",
        "_path_last",
        "_path_root",
        "_path_steps",
        "_path_stream",
    )

    def __init__(self, root: _Root, steps: _Steps, last: _Arguments) -> None:
        self._path_root = root
        self._path_steps = steps
        self._path_last = last
        self._path_is_used = False
        self._path_has_begun = False
        self._path_coroutine: Coroutine[Any, Any, Any] | None = None
        self._path_stream: AsyncStream | None = None

    def __getattr__(self, name: str) -> ClientPath:
        # asyncio looks for the code and the frame of a coroutine, to show them.
        if name.startswith(("_", "cr_", "gi_")):
            raise AttributeError(f"{self!r} has no {name}")
        self._path_is_used = True
        return ClientPath(self._path_root, (*self._path_steps, self._path_last, name))

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._path_run().__await__()

    def send(self, value: Any) -> Any:
        """Runs it, as a coroutine, to its next wait."""
        return self._path_run().send(value)

    def throw(self, *error: Any) -> Any:
        """Raises in it, as in a coroutine."""
        return self._path_run().throw(*error)

    def close(self) -> None:
        """Ends it, as a coroutine; a stream ends by its own `aclose`."""
        if self._path_coroutine is not None or not self._path_has_begun:
            self._path_run().close()

    def __aiter__(self) -> AsyncStream:
        return AsyncStream(*call_of(self))

    async def __aenter__(self) -> AsyncStream:
        self._path_stream = AsyncStream(*call_of(self))
        return await self._path_stream.__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        if self._path_stream is not None:
            await self._path_stream.aclose()

    def __del__(self) -> None:
        if not self._path_is_used:
            warnings.warn(f"{self!r} was never awaited", RuntimeWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<asyncify {type(self._path_root.client).__name__}{_name(('', *self._path_steps))}(...)>"

    def _path_run(self) -> Coroutine[Any, Any, Any]:
        if self._path_coroutine is None:
            caller, call = call_of(self)
            self._path_coroutine = caller.run(call)
        return self._path_coroutine


def call_of(path_call: PathCall) -> tuple[Caller, Call]:
    """The call that it stands for, which begins now, and who makes it.

    Raises:
        RuntimeError: it has begun before; a second one would be sent, and billed, unasked.
    """
    if path_call._path_has_begun:
        raise RuntimeError(
            f"{path_call!r} was awaited or iterated already: write the call again to make it again"
        )
    path_call._path_is_used = path_call._path_has_begun = True
    steps, last = path_call._path_steps, path_call._path_last
    caller = path_call._path_root.caller
    call = caller.call(_name(steps), last.args, last.kwargs)
    call.find = functools.partial(_found, steps)
    return caller, call


def is_asyncified(client: object) -> bool:
    """Whether `asyncify` has made it."""
    return isinstance(client, ClientPath) or (inspect.isfunction(client) and client in _paths)


def with_settings(asyncified: Any, settings: Settings) -> Any:
    """What `asyncify` has made, under these settings, unless it was made with some of its own."""
    if not isinstance(asyncified, ClientPath):
        return _function_by(with_settings(_paths[asyncified], settings), asyncified.__wrapped__)
    path = asyncified
    root = path._path_root
    if root.settings is not None or "caller" in vars(root):
        return path
    return ClientPath(_Root(root.client, root.pool, settings), path._path_steps)


def client_of(path: ClientPath) -> Any:
    """The client at which the path begins."""
    return path._path_root.client


def _found(steps: _Steps, client: Any) -> Any:
    for step in steps:
        client = getattr(client, step) if isinstance(step, str) else client(*step.args, **step.kwargs)
    return client


def _name(steps: _Steps) -> str:
    return "".join(f".{step}" if isinstance(step, str) else "()" for step in steps).removeprefix(".")
