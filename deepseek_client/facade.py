"""Async methods over a blocking client that is not edited."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeVar

from .calls.call import EndedCall
from .calls.caller import Caller
from .calls.options import call_options
from .engines.threads import WorkerPool
from .settings import Settings

__all__ = ["AsyncFacade", "call_options", "has_method", "is_per_thread", "per_thread"]

_T = TypeVar("_T")


class AsyncFacade(AbstractContextManager[Any], AbstractAsyncContextManager[Any]):
    """Gives every method `name` of a blocking client an awaitable twin `name_async`, run on a pool.

    The client is any object: an instance, a class, a module, a requests.Session. What the method returns or raises
    comes back unchanged; WorkerPool.run says what the pool raises. Every other attribute is the client's own, to read
    and to set. Where the client has a `name_async` of its own, the facade's is meant: the other one is
    `facade.__wrapped__.name_async`.

    Args:
        pool: where the calls run; None for a pool of this client's own, of the size that `settings` give, so that its
            hung calls take no slot from other clients.
        settings: None for `Settings.from_env(os.environ)`.
        abort: ends a call that waits for no socket of Python's, such as one of gRPC. Called with an EndedCall, in a
            thread of its own, when a call's deadline passes, its task is cancelled or the process leaves while the
            method runs; the method may return just then. What it raises is logged.

    Threads: as thread-safe as the client: up to LLM_MAX_WORKERS of its methods run at once, for any number of
        event loops, also after a fork. See `per_thread`.
    """

    __facade_caller__: Caller  # named so that it hides no attribute of a client
    __wrapped__: Any
    """The client itself."""

    def __init__(
        self,
        client: Any,
        *,
        pool: WorkerPool | None = None,
        settings: Settings | None = None,
        abort: Callable[[EndedCall], object] | None = None,
    ) -> None:
        settings = settings or Settings.from_env(os.environ)
        pool = pool or WorkerPool(settings.max_workers, settings.queue_limit)
        self.__facade_caller__ = Caller(client, settings, pool, abort=abort)

    def __getattr__(self, name: str) -> Any:
        if name == "__facade_caller__":  # not set yet: copy, pickle and a failed __init__ ask early
            raise AttributeError(name)
        client = self.__facade_caller__.client
        if name == "__wrapped__":  # not a property: inspect would take it for a class's own
            return client
        method = name.removesuffix("_async")
        if method != name and has_method(client, method):
            return functools.partial(_call_async, self.__facade_caller__, method)
        return getattr(client, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__facade_caller__":
            object.__setattr__(self, name, value)
            return
        client = self.__facade_caller__.client
        method = name.removesuffix("_async")
        if method != name and has_method(client, method):
            # The client would have it, and nobody would call it.
            raise AttributeError(
                f"cannot set {name}: it calls the client's {method}, so set {method} in its place"
            )
        setattr(client, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__facade_caller__.client, name)

    def __dir__(self) -> list[str]:
        client = self.__facade_caller__.client
        names = [name for name in dir(client) if not name.startswith("_")]
        # Statically: a property of the client is not run for it.
        twins = [f"{name}_async" for name in names if callable(inspect.getattr_static(client, name, None))]
        return sorted({*object.__dir__(self), *names, *twins})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {_name_of(self.__facade_caller__.client)}>"

    def close(self) -> None:
        """Refuses further calls of this object. Idempotent; the pool and the client are not closed."""
        self.__facade_caller__.is_closed = True

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()


class _PerThread:
    """One client for each thread, made when that thread first needs it."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        object.__setattr__(self, "_per_thread_factory", factory)
        object.__setattr__(self, "_per_thread_clients", threading.local())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_per_thread"):
            raise AttributeError(name)
        return getattr(self._per_thread_client(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot set {name}: each thread has a client of its own; set it in the factory")

    def __repr__(self) -> str:
        return f"<per_thread {_name_of(self._per_thread_factory)}>"

    def _per_thread_client(self) -> Any:
        clients = self._per_thread_clients
        try:
            return clients.client
        except AttributeError:
            clients.client = self._per_thread_factory()
            return clients.client


def per_thread(factory: Callable[[], _T]) -> _T:
    """A client to wrap whose every thread uses one of its own, for clients that are not thread-safe.

    Args:
        factory: makes a client; called on a worker thread, once for each, also after a fork.

    Threads: attributes are looked up in the thread that uses them, on a pool that is its worker.
    """
    client: Any = _PerThread(factory)
    return client  # type: ignore[no-any-return]


def is_per_thread(client: Any) -> bool:
    """Whether `per_thread` has made it: to ask for an attribute would make a client on the asking thread."""
    return isinstance(client, _PerThread)


def has_method(client: Any, name: str) -> bool:
    """Whether the client has the method; of what `per_thread` makes, whether its class has it, if that is known."""
    if is_per_thread(client):
        factory = client._per_thread_factory
        return (
            callable(getattr(factory, name, None)) if inspect.isclass(factory) else not name.startswith("_")
        )
    return callable(getattr(client, name, None))


def _name_of(client: Any) -> str:
    return getattr(client, "__name__", None) or type(client).__name__


async def _call_async(caller: Caller, method: str, /, *args: Any, **kwargs: Any) -> Any:
    return await caller.run(caller.call(method, args, kwargs))
