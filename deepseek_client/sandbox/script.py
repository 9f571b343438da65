"""The script: which replies come next, as ``POST /sandbox/script`` describes them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["FAULT_NAMES", "Entry", "Script", "ScriptError", "read_script", "script_language"]

_TIMES_LIMIT = 100_000
_BODY_BYTES_LIMIT = 1 << 30


class ScriptError(ValueError):
    """A script is not understood: names the thing, its value and what is known. Nothing of it was queued."""


class Entry(NamedTuple):
    """One scripted reply; `latency_ms` None means the sandbox's own latency."""

    fault: str
    parameters: Mapping[str, Any]
    latency_ms: float | None


class Script:
    """The queue of scripted replies, first in first out.

    Threads: only the event loop's thread.
    """

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def extend(self, entries: list[Entry]) -> None:
        """Queue `entries` behind those that are there."""
        self._entries.extend(entries)

    def next(self) -> Entry | None:
        """Take the next entry; None when nothing is scripted."""
        return self._entries.popleft() if self._entries else None

    def clear(self) -> None:
        """Drop what is queued."""
        self._entries.clear()


class _Kind(NamedTuple):
    fits: Callable[[Any], bool]
    need: str
    required: bool = False


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _number_above(low: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low < value < math.inf


def _is_printable(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and value.isascii()


def _is_headers(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_printable(text) for pair in value.items() for text in pair)


def _is_charset(value: Any) -> bool:
    try:
        return isinstance(value, str) and "".encode(value) == b"".decode(value).encode(value)
    except (LookupError, UnicodeError):
        return False


def _is_list(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(fits, value))


_TEXT = _Kind(lambda value: isinstance(value, str), "a string")
_REQUIRED_TEXT = _TEXT._replace(required=True)
_PRINTABLE = _Kind(_is_printable, "a string in printable ASCII")
_EVERY_S = {"every_s": _Kind(_number_above(0), "a number above 0")}
_LINES = {"lines": _Kind(_whole(1, _TIMES_LIMIT), f"a whole number from 1 to {_TIMES_LIMIT}")}
_BYTES = {"bytes": _Kind(_whole(1, _BODY_BYTES_LIMIT), f"a whole number from 1 to {_BODY_BYTES_LIMIT}")}
_STATUS = {
    "status": _Kind(_whole(200, 599), "a whole number from 200 to 599", required=True),
    "headers": _Kind(_is_headers, "an object of strings in printable ASCII"),
    "body": _Kind(lambda value: isinstance(value, (str, dict)), "a string or an object"),
}
_FLAG = _Kind(lambda value: isinstance(value, bool), "true or false")
_DELAY_S = {"delay_s": _Kind(_number_above(-1e-9), "a number of at least 0")}
_STATUSES = {
    "statuses": _Kind(
        _is_list(lambda value: _whole(100, 199)(value) and value != 101),
        "a list of numbers from 100 to 199, not 101",
    )
}
_LENGTHS = _Kind(_is_list(lambda value: isinstance(value, str)), "a list of strings", required=True)
_REDIRECT = {
    "location": _PRINTABLE._replace(required=True),
    "status": _Kind(_whole(300, 399), "a whole number from 300 to 399"),
}
_COMMON = {
    "fault": _REQUIRED_TEXT,
    "times": _Kind(_whole(1, _TIMES_LIMIT), f"a whole number from 1 to {_TIMES_LIMIT}"),
    "latency_ms": _Kind(_number_above(-1e-9), "a number of at least 0"),
}
_PARAMETERS: Mapping[str, Mapping[str, _Kind]] = {
    "blank": {},
    "blank_content": {},
    "charset": {"charset": _Kind(_is_charset, "the name of a charset", required=True), "says": _PRINTABLE},
    "close_after_reply": {},
    "close_before_reply": {},
    "content": {"text": _REQUIRED_TEXT, "finish_reason": _TEXT},
    "content_filter": {},
    "cut_body": {},
    "drip": {**_EVERY_S, **_LINES},
    "empty_choices": {},
    "fenced": {},
    "hang": {},
    "hang_in_body": {},
    "html": {},
    "huge_body": _BYTES,
    "insufficient_system_resource": {},
    "interim": {**_STATUSES, **_DELAY_S},
    "invalid_utf8": {},
    "lengths": {"lengths": _LENGTHS, "chunked": _FLAG},
    "no_choices": {},
    "null_content": {},
    "ok": {},
    "raw": {"head": _REQUIRED_TEXT, "body": _TEXT, "closes": _FLAG},
    "redirect": _REDIRECT,
    "reset_before_reply": {},
    "reset_in_body": {},
    "slow_body": _EVERY_S,
    "status": _STATUS,
    "stray": {"text": _TEXT, **_DELAY_S},
    "truncated_json": {},
    "vanish_after_reply": {},
}
FAULT_NAMES = tuple(_PARAMETERS)


def read_script(body: object) -> list[Entry]:
    """Read ``{"replies": [{"fault": NAME, "times": N, "latency_ms": X, ...}]}``; `times` is unrolled.

    Raises:
        ScriptError: an unknown name, a wrong type or a value out of range.
    """
    if not isinstance(body, dict):
        raise ScriptError(f'body: need {{"replies": [...]}}, got {type(body).__name__}')
    for name in body:
        if name != "replies":
            raise ScriptError(f"{name!r} is unknown; known: replies")
    replies = body.get("replies")
    if not isinstance(replies, list):
        raise ScriptError(f"replies={replies!r}: need a list")
    entries: list[Entry] = []
    for index, reply in enumerate(replies):
        entries += _read_reply(f"replies[{index}]", reply)
    return entries


def script_language() -> dict[str, dict[str, str]]:
    """What each fault's entry may say and, as `read_script` words it, what that must be."""
    return {
        fault: {
            name: kind.need + (", required" if kind.required else "")
            for name, kind in {**_COMMON, **parameters}.items()
        }
        for fault, parameters in _PARAMETERS.items()
    }


def _read_reply(where: str, reply: object) -> list[Entry]:
    if not isinstance(reply, dict):
        raise ScriptError(f'{where}={reply!r}: need an object with a "fault"')
    fault = reply.get("fault")
    if not isinstance(fault, str) or fault not in _PARAMETERS:
        raise ScriptError(f"{where}.fault={fault!r} is unknown; known: {', '.join(FAULT_NAMES)}")
    kinds = {**_COMMON, **_PARAMETERS[fault]}
    for name, value in reply.items():
        if name not in kinds:
            raise ScriptError(f"{where}.{name}={value!r}: {fault} knows {', '.join(kinds)}")
        if not kinds[name].fits(value):
            raise ScriptError(f"{where}.{name}={value!r}: need {kinds[name].need}")
    for name, kind in kinds.items():
        if kind.required and name not in reply:
            raise ScriptError(f"{where}.{name} is missing: {fault} needs {kind.need}")
    parameters = {name: value for name, value in reply.items() if name not in _COMMON}
    return [Entry(fault, parameters, reply.get("latency_ms"))] * int(reply.get("times", 1))
