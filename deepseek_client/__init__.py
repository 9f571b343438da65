"""Concurrency for an application that calls DeepSeek through a blocking client, without editing that client.

A name is loaded when it is first used: `deepseek-client toggle` must work where the rest does not load.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calls.call import EndedCall
    from .client import DeepSeekClient
    from .deepseek import AsyncDeepSeekClient, get_default_client
    from .engines.threads import WorkerPool
    from .errors import (
        AuthenticationFailed,
        BadReply,
        CallerLeft,
        CircuitOpen,
        ClientClosed,
        ConfigError,
        ConnectionFailed,
        DeadlineExceeded,
        DeepSeekError,
        InsufficientBalance,
        InvalidRequest,
        Overloaded,
        PoolClosed,
        QueueUnavailable,
        RateLimited,
        UpstreamRejected,
        UpstreamUnavailable,
    )
    from .facade import AsyncFacade, call_options, per_thread
    from .paths import asyncify
    from .settings import Settings

__all__ = [
    "AsyncDeepSeekClient",
    "AsyncFacade",
    "AuthenticationFailed",
    "BadReply",
    "CallerLeft",
    "CircuitOpen",
    "ClientClosed",
    "ConfigError",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DeepSeekClient",
    "DeepSeekError",
    "EndedCall",
    "InsufficientBalance",
    "InvalidRequest",
    "Overloaded",
    "PoolClosed",
    "QueueUnavailable",
    "RateLimited",
    "Settings",
    "UpstreamRejected",
    "UpstreamUnavailable",
    "WorkerPool",
    "asyncify",
    "call_options",
    "get_default_client",
    "per_thread",
]

__version__ = "0.1.0"

_HOMES = {
    "AsyncDeepSeekClient": "deepseek",
    "AsyncFacade": "facade",
    "DeepSeekClient": "client",
    "EndedCall": "calls.call",
    "Settings": "settings",
    "WorkerPool": "engines.threads",
    "asyncify": "paths",
    "call_options": "facade",
    "per_thread": "facade",
    "get_default_client": "deepseek",
}


if not TYPE_CHECKING:  # a misspelt name is an error for type checkers, not `Any`

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__)
        except AttributeError as error:  # of this function, it would say that the name does not exist
            raise ImportError(f"{__name__}.{name} cannot be loaded: {error}") from error
        value = getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
