"""What a scripted reply says: the table from a fault's name to a body, or to what happens on the wire."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from aiohttp import web

from . import framing, wire
from .replies import encoded

__all__ = ["BODY_FAULTS", "WIRE_FAULTS", "Answer", "status_answer"]

_HUGE_BODY_BYTES = 50 * 1024 * 1024
_EVERY_S = 0.05
_EARLY_HINTS = (103,)
_LATE_S = 0.1
# A whole reply to a question that nobody asked: a client out of step takes it for the answer to its next one.
_STRAY_BODY = '{"choices": [{"message": {"content": "stray"}, "finish_reason": "stop"}], "usage": {}}'
_STRAY = f"HTTP/1.1 200 OK\r\nContent-Length: {len(_STRAY_BODY)}\r\n\r\n{_STRAY_BODY}"
_HTML = (
    b"<!DOCTYPE html><html><head><title>Gateway</title></head><body><h1>One moment, please</h1></body></html>"
)
_PARTIAL_CONTENT = "沙盒已收到：「这个回复在中途"
_Reply = dict[str, Any]
_Parameters = Mapping[str, Any]


class Answer(NamedTuple):
    """A complete HTTP answer."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = wire.JSON_HEADERS


def status_answer(parameters: _Parameters, default_body: bytes) -> Answer:
    """The answer of the fault ``status``; `default_body` is sent when the script gives none."""
    body = parameters.get("body")
    if body is None:
        content = default_body
    elif isinstance(body, str):
        content = body.encode("utf-8", "replace")
    else:
        content = encoded(body)
    headers: Mapping[str, str] = parameters.get("headers", {})
    names = {name.lower() for name in headers}
    defaults = {name: value for name, value in wire.JSON_HEADERS.items() if name.lower() not in names}
    return Answer(content, parameters["status"], {**defaults, **headers})


def _said(reply: _Reply, content: str | None, finish_reason: str = "stop") -> Answer:
    choice = reply["choices"][0]
    choice["message"]["content"] = content
    choice["finish_reason"] = finish_reason
    return Answer(encoded(reply))


def _content(reply: _Reply, parameters: _Parameters) -> Answer:
    return _said(reply, parameters["text"], parameters.get("finish_reason", "stop"))


def _fenced(reply: _Reply, parameters: _Parameters) -> Answer:
    content = reply["choices"][0]["message"]["content"]
    return _said(reply, f"```json\n{content}\n```")


def _truncated_json(reply: _Reply, parameters: _Parameters) -> Answer:
    whole = encoded(reply).decode()
    return Answer(whole[: len(whole) // 2].encode())


def _charset(reply: _Reply, parameters: _Parameters) -> Answer:
    charset = parameters["charset"]
    said = parameters.get("says", charset)
    kind = f"application/json; charset={said}" if said else "application/json"
    return Answer(encoded(reply).decode().encode(charset, "replace"), 200, {"Content-Type": kind})


def _redirect(reply: _Reply, parameters: _Parameters) -> Answer:
    return Answer(_HTML, parameters.get("status", 302), {"Location": parameters["location"]})


def _no_choices(reply: _Reply, parameters: _Parameters) -> Answer:
    del reply["choices"]
    return Answer(encoded(reply))


def _empty_choices(reply: _Reply, parameters: _Parameters) -> Answer:
    reply["choices"] = []
    return Answer(encoded(reply))


def _invalid_utf8(reply: _Reply, parameters: _Parameters) -> Answer:
    mark = "invalid-utf8-goes-here"
    body = json.loads(_said(reply, mark).body)
    return Answer(encoded(body).replace(mark.encode(), b"\xe6\xb2\xff\xfe\x80"))


# Each takes the normal reply, which it may change, and the entry's parameters.
BODY_FAULTS: Mapping[str, Callable[[_Reply, _Parameters], Answer]] = {
    "blank": lambda reply, parameters: Answer(b""),
    "blank_content": lambda reply, parameters: _said(reply, " " * 16),
    "charset": _charset,
    "content": _content,
    "content_filter": lambda reply, parameters: _said(reply, "", "content_filter"),
    "empty_choices": _empty_choices,
    "fenced": _fenced,
    "html": lambda reply, parameters: Answer(_HTML, 200, {"Content-Type": "text/html; charset=utf-8"}),
    "insufficient_system_resource": lambda reply, parameters: _said(
        reply, _PARTIAL_CONTENT, "insufficient_system_resource"
    ),
    "invalid_utf8": _invalid_utf8,
    "no_choices": _no_choices,
    "null_content": lambda reply, parameters: _said(reply, None),
    "redirect": _redirect,
    "truncated_json": _truncated_json,
}

# Each takes the request, the normal reply's bytes and the entry's parameters.
WIRE_FAULTS: Mapping[str, Callable[[web.Request, bytes, _Parameters], Awaitable[web.StreamResponse]]] = {
    "close_after_reply": lambda request, body, parameters: wire.send_then_close(request, body),
    "close_before_reply": lambda request, body, parameters: wire.close(request),
    "cut_body": lambda request, body, parameters: wire.send_half_then(wire.close, request, body),
    "drip": lambda request, body, parameters: wire.drip(
        request, body, parameters.get("every_s", _EVERY_S), parameters.get("lines")
    ),
    "hang": lambda request, body, parameters: wire.hang(request),
    "hang_in_body": lambda request, body, parameters: wire.send_half_then(wire.hang, request, body),
    "huge_body": lambda request, body, parameters: wire.send_padded(
        request, body, parameters.get("bytes", _HUGE_BODY_BYTES)
    ),
    "interim": lambda request, body, parameters: framing.send_after_interim(
        request, body, parameters.get("statuses", _EARLY_HINTS), parameters.get("delay_s", _LATE_S)
    ),
    "lengths": lambda request, body, parameters: framing.send_with_lengths(
        request, body, parameters["lengths"], chunked=parameters.get("chunked", False)
    ),
    "raw": lambda request, body, parameters: framing.send_raw(
        request,
        parameters["head"],
        parameters["body"].encode("latin-1", "replace") if "body" in parameters else body,
        closes=parameters.get("closes", False),
    ),
    "reset_before_reply": lambda request, body, parameters: wire.reset(request),
    "reset_in_body": lambda request, body, parameters: wire.send_half_then(wire.reset, request, body),
    "slow_body": lambda request, body, parameters: wire.send_slowly(
        request, body, parameters.get("every_s", _EVERY_S)
    ),
    "stray": lambda request, body, parameters: framing.send_then_stray(
        request, body, parameters.get("text", _STRAY), parameters.get("delay_s", 0)
    ),
    "vanish_after_reply": lambda request, body, parameters: framing.send_then_vanish(request, body),
}
