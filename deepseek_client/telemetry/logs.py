"""Log lines: one per call, each with the id of its request, as text or as JSON, and none with a key."""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from .. import request_id
from ..events import CallFinished, subscribe

__all__ = ["handler", "install", "masking"]

_TEXT = "%(asctime)s %(levelname)s [%(request_id)s] %(name)s: %(message)s"
_MASK = "***"
_SHORTEST_SECRET = 8

_logger = logging.getLogger("deepseek_client.calls")


def install() -> None:
    """Logs one line at INFO for every call of this process from now on. Idempotent."""
    subscribe(_log_call)


def handler(*, as_json: bool, secrets: tuple[str, ...]) -> logging.Handler:
    """A handler that writes lines to stderr, each with the id of its request.

    Args:
        as_json: one JSON object per line instead of text.
        secrets: what no line may show, whoever logs it; as for `masking`.

    Threads: as every handler.
    """
    made = logging.StreamHandler()
    made.addFilter(_add_request_id)  # in the thread that logs: its context has the id
    made.setFormatter(_Line(as_json, masking(secrets)))
    return made


def masking(secrets: Iterable[str]) -> Callable[[str], str]:
    """A function that masks these secrets in a text, as they are and as JSON writes them.

    Args:
        secrets: those of fewer than 8 characters, which would be found inside of ordinary words, are ignored.
    """
    known = [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET]
    shapes = {shape for secret in known for shape in (secret, json.dumps(secret)[1:-1])}
    # The longest first: one may begin with another.
    in_turn = sorted(shapes, key=len, reverse=True)
    return lambda text: functools.reduce(lambda masked, shape: masked.replace(shape, _MASK), in_turn, text)


class _Line(logging.Formatter):
    def __init__(self, as_json: bool, mask: Callable[[str], str]) -> None:
        super().__init__(_TEXT)
        self._as_json = as_json
        # What another encoding cannot carry the stream would write in a way that JSON does not know.
        self._is_utf8 = (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        return self._mask(self._json(record) if self._as_json else super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        # What a player typed must not look like a line of its own; a traceback keeps its lines.
        return super().formatMessage(record).replace("\r", "\\r").replace("\n", "\\n")

    def _json(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "request_id": getattr(record, "request_id", "-"),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=not self._is_utf8, default=str)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.current() or "-"
    return True


def _log_call(event: Any) -> None:
    if not isinstance(event, CallFinished) or not _logger.isEnabledFor(logging.INFO):
        return
    facts = {
        "method": event.method,
        "mode": event.mode,
        "outcome": event.error or "ok",
        "attempts": event.attempts,
        "waited_ms": round(event.waited_s * 1000),
        "ran_ms": round(event.ran_s * 1000),
        "tokens": event.usage.get("total_tokens", 0),
    }
    _logger.info(" ".join(f"{name}={value}" for name, value in facts.items()), extra={"facts": facts})
