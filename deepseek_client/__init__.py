"""Concurrency for an application that calls DeepSeek through a blocking client, without editing that client."""

from .client import DeepSeekClient
from .deepseek import get_default_client
from .engines.threads import WorkerPool
from .errors import (
    AuthenticationFailed,
    BadReply,
    CircuitOpen,
    ConfigError,
    ConnectionFailed,
    DeadlineExceeded,
    DeepSeekError,
    InsufficientBalance,
    InvalidRequest,
    Overloaded,
    PoolClosed,
    RateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from .facade import AsyncDeepSeekClient, AsyncFacade
from .settings import Settings

__all__ = [
    "AsyncDeepSeekClient",
    "AsyncFacade",
    "AuthenticationFailed",
    "BadReply",
    "CircuitOpen",
    "ConfigError",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DeepSeekClient",
    "DeepSeekError",
    "InsufficientBalance",
    "InvalidRequest",
    "Overloaded",
    "PoolClosed",
    "RateLimited",
    "Settings",
    "UpstreamRejected",
    "UpstreamUnavailable",
    "WorkerPool",
    "get_default_client",
]

__version__ = "0.1.0"
