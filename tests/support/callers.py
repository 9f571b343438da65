"""A caller over plain functions, and the three ways to call one: on the pool, in the own thread, as a stream."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from deepseek_client import Settings, WorkerPool
from deepseek_client.calls.caller import Caller
from deepseek_client.calls.streams import AsyncStream


def caller(pool: WorkerPool | None = None, *, use_async: bool = True, **methods: Any) -> Caller:
    settings = Settings(max_workers=1, queue_limit=0, use_async=use_async)
    return Caller(SimpleNamespace(**methods), settings, pool)


def called(ours: Caller, method: str = "chat", /, *args: Any, **kwargs: Any) -> Any:
    """A call on the pool, to be awaited."""
    return ours.run(ours.call(method, args, kwargs))


def called_here(ours: Caller, method: str = "chat", /, *args: Any, **kwargs: Any) -> Any:
    return ours.run_here(ours.call(method, args, kwargs))


def stream(ours: Caller, method: str = "talk", /, *args: Any, deadline: float | None = None) -> AsyncStream:
    return AsyncStream(ours, ours.call(method, args, {}, deadline))
