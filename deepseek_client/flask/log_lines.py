"""Log lines for a deployment that has configured no logging."""

from __future__ import annotations

import logging
import os

from deepseek_client import Settings

from ..fork_safe import ForkSafeLock
from ..telemetry import logs

__all__ = ["install"]

_library = logging.getLogger("deepseek_client")
_lock = ForkSafeLock()
_secrets: set[str] = set()  # guarded by _lock; of all applications of this process
_handler: logging.Handler | None = None  # guarded by _lock


def install(settings: Settings, *more_secrets: str) -> None:
    """Logs one line per call, and makes it be seen.

    The logger `deepseek_client` gets the level INFO if it has none (DEBUG with DEEPSEEK_VERBOSE=1, for what the client
    says of prompts and replies), and a handler to stderr that masks the secrets.
    The handler is silent as soon as the application has one, on the root logger or on this one. Loggers of this package
    that `dictConfig` has disabled because they were there already, for it was imported, are enabled again.

    Threads: any.
    """
    global _handler
    logs.install()
    _enable_what_was_configured_away()
    if _library.level == logging.NOTSET:
        _library.setLevel(logging.DEBUG if os.environ.get("DEEPSEEK_VERBOSE") == "1" else logging.INFO)
    with _lock:
        _secrets.update((settings.api_key, settings.web_api_token, *more_secrets))
        former = _handler
        _handler = logs.handler(as_json=settings.log_format == "json", secrets=tuple(_secrets))
        _handler.addFilter(_is_needed)
        _library.addHandler(_handler)
        if former is not None:
            _library.removeHandler(former)


def _enable_what_was_configured_away() -> None:
    if not _library.disabled:  # an application that disables one of its children means it
        return
    for name, logger in [*logging.root.manager.loggerDict.items()]:
        if isinstance(logger, logging.Logger) and f"{name}.".startswith(f"{_library.name}."):
            logger.disabled = False


def _is_needed(_: logging.LogRecord) -> bool:
    return not logging.getLogger().handlers and all(handler is _handler for handler in _library.handlers)
