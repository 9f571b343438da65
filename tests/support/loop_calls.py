"""Clients whose calls go to a sandbox or run a function, and a wait that leaves the event loop to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from deepseek_client import AsyncDeepSeekClient, AsyncFacade, Settings, WorkerPool
from deepseek_client.sandbox import RunningSandbox

from .clients import build
from .patience import GIVE_UP_S


def client_of(
    sandbox: RunningSandbox, pool: WorkerPool | None = None, **settings: Any
) -> AsyncDeepSeekClient:
    """A client that raises, and tries nothing again."""
    return build(Settings(api_key="sk-test", base_url=sandbox.url, max_attempts=1, **settings), pool=pool)


def facade_of(
    function: Callable[..., Any], workers: int = 5, queue_limit: int = 100, **settings: Any
) -> AsyncFacade:
    """A facade of a client with this one method, `ask`."""
    return AsyncFacade(
        SimpleNamespace(ask=function), pool=WorkerPool(workers, queue_limit), settings=Settings(**settings)
    )


async def seen(sandbox: RunningSandbox, fact: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Waits without holding the loop up until the sandbox has seen something; gives its counters."""
    return await asyncio.to_thread(sandbox.wait_until, fact, GIVE_UP_S)
