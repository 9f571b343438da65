"""What a scripted reply says: the table from a fault's name to a body, or to what happens on the wire."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from aiohttp import web

from . import wire
from .replies import encoded

__all__ = ["BODY_FAULTS", "WIRE_FAULTS", "Answer", "status_answer"]

_HUGE_BODY_BYTES = 50 * 1024 * 1024
_EVERY_S = 0.05
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
    "reset_before_reply": lambda request, body, parameters: wire.reset(request),
    "reset_in_body": lambda request, body, parameters: wire.send_half_then(wire.reset, request, body),
    "slow_body": lambda request, body, parameters: wire.send_slowly(
        request, body, parameters.get("every_s", _EVERY_S)
    ),
}
