"""The process's own client."""

from __future__ import annotations

import os
import threading

from .facade import AsyncDeepSeekClient

__all__ = ["get_default_client"]

_default: AsyncDeepSeekClient | None = None  # guarded by _lock
_lock = threading.Lock()


def get_default_client() -> AsyncDeepSeekClient:
    """The process's own client, built from the environment at the first call; also after a fork.

    Raises:
        ConfigError: a variable of the environment is wrong.

    Threads: any.
    """
    global _default
    with _lock:
        if _default is None or _default._caller.is_closed:
            _default = AsyncDeepSeekClient()
        return _default


def _after_fork_in_child() -> None:
    global _default, _lock
    _default, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
