"""Log lines: one per call, each with the id of its request, as text or as JSON, and none with a key."""

from __future__ import annotations

import functools
import json
import logging
import re
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
_MESSAGE_LIMIT = 4000  # characters: a reply's reason phrase alone may have 60,000
_TRACEBACK_LIMIT = 10 * _MESSAGE_LIMIT

# What moves a terminal's cursor, changes its colours, or looks like the beginning of another line: all of Unicode's
# control characters, its line and paragraph separators, and what turns the direction of writing around.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NAMES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}

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
    made = _ToStderr()
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


class _ToStderr(logging.StreamHandler):  # type: ignore[type-arg]  # Python 3.10 takes none
    """Writes to what is `sys.stderr` at that moment: test runners replace it for a while, and close theirs."""

    _given: Any = None  # by setStream

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own would keep today's stream

    @property
    def stream(self) -> Any:
        return self._given or sys.stderr

    @stream.setter
    def stream(self, stream: Any) -> None:
        self._given = stream


class _Line(logging.Formatter):
    def __init__(self, as_json: bool, mask: Callable[[str], str]) -> None:
        super().__init__(_TEXT)
        self._as_json = as_json
        # What another encoding cannot carry the stream would write in a way that JSON does not know.
        self._is_utf8 = (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        return self._mask(self._json(record) if self._as_json else self._text(record))

    def _text(self, record: logging.LogRecord) -> str:
        record.message = self._message_of(record)
        record.asctime = self.formatTime(record)
        # What a player typed must not look like a line of its own; a traceback keeps its lines.
        return "\n".join([_escaped(self.formatMessage(record)), *self._traceback_of(record)])

    def _message_of(self, record: logging.LogRecord) -> str:
        # Masked before it is cut, which may leave the first half of a secret.
        return _cut(self._mask(record.getMessage()), _MESSAGE_LIMIT)

    def _traceback_of(self, record: logging.LogRecord) -> list[str]:
        """What stands below the message, each line safe to show; empty if there is nothing."""
        parts = [self.formatException(record.exc_info)] if record.exc_info else []
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        lines = self._mask("\n".join(parts)).split("\n")
        text = "\n".join(_escaped(_cut(line, _MESSAGE_LIMIT)) for line in lines)
        return [_cut(text, _TRACEBACK_LIMIT)] if text else []

    def _json(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "request_id": getattr(record, "request_id", "-"),
            "logger": record.name,
            "message": self._message_of(record),
            **getattr(record, "facts", {}),
        }
        if lines := self._traceback_of(record):
            fields["traceback"] = "\n".join(lines)
        text = json.dumps(fields, ensure_ascii=not self._is_utf8, default=str)
        # Inside of its strings JSON lets some of them stand as they are.
        return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escaped(text: str) -> str:
    """The text as one line that a terminal shows and does not obey."""
    return _CONTROLS.sub(lambda found: _NAMES.get(found[0]) or _number_of(found[0]), text)


def _number_of(control: str) -> str:
    number = ord(control)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text) - limit} more characters)"


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
    if event.first_chunk_s is not None:
        facts["first_chunk_ms"] = round(event.first_chunk_s * 1000)
    if event.finish_reason not in ("", "stop"):
        facts["finish"] = event.finish_reason if re.fullmatch(r"\w{1,40}", event.finish_reason) else "other"
    line = " ".join(f"{name}={value}" for name, value in facts.items())
    if event.note:
        facts["note"] = _cut(event.note, _MESSAGE_LIMIT)
        line += f" note={json.dumps(event.note, ensure_ascii=False)}"
    _logger.info("%s", line, extra={"facts": facts})
