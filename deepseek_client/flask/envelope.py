"""What every request has: an id, and its place in the metrics.

Flask's signals come before the first and after the last of an application's own hooks, whenever those were registered.
"""

from __future__ import annotations

import time
from typing import Any

from flask import (
    Flask,
    Response,
    appcontext_pushed,
    g,
    request,
    request_finished,
    request_started,
    request_tearing_down,
)

from deepseek_client import events, request_id

from .arrival import seconds_queued

__all__ = ["count_requests", "give_ids", "name_route"]

_HEADER = "X-Request-ID"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def give_ids(app: Flask) -> None:
    """Gives each request an id, the caller's X-Request-ID or a new one; an answer that has one keeps its own."""
    request_started.connect(_accept_id, app)
    appcontext_pushed.connect(_resume_id, app)
    request_finished.connect(_answer_id, app)
    request_tearing_down.connect(_forget_id, app)


def count_requests(app: Flask) -> None:
    """Reports each answer, by its route, as an event for the metrics."""
    request_started.connect(_begin, app)
    request_finished.connect(_report, app)


def name_route(route: str) -> None:
    """Says under which name the running request is counted; without it, under the pattern of its route."""
    g._deepseek_route = route


def _accept_id(_: Flask, **__: Any) -> None:
    g._deepseek_id = request_id.accept(request.headers.get(_HEADER))


def _resume_id(_: Flask, **__: Any) -> None:
    # An answer under `stream_with_context` is made after the request's end: Flask brings its context back.
    if "_deepseek_id" in g:
        request_id.accept(g._deepseek_id)


def _answer_id(_: Flask, response: Response, **__: Any) -> None:
    response.headers.setdefault(_HEADER, g._deepseek_id)


def _forget_id(_: Flask, **__: Any) -> None:
    request_id.forget()


def _begin(_: Flask, **__: Any) -> None:
    g._deepseek_began = time.monotonic()
    g._deepseek_queued_s = seconds_queued(request.environ)


def _report(_: Flask, response: Response, **__: Any) -> None:
    # A bounded set of labels, whatever strangers ask for.
    pattern = request.url_rule.rule if request.url_rule is not None else "unmatched"
    route = g.get("_deepseek_route", pattern)
    method = request.method if request.method in _METHODS else "other"
    took_s = time.monotonic() - g._deepseek_began
    events.emit(events.RequestFinished(method, route, response.status_code, took_s, g._deepseek_queued_s))
