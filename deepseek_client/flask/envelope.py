"""What every request and every answer has: an id, its place in the metrics, and headers for the browser."""

from __future__ import annotations

import time

from flask import Flask, Response, g, request

from deepseek_client import events, request_id

__all__ = ["init_app"]

# The answers are data for programs, and say what a player typed: nothing to render, to embed or to keep.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def init_app(app: Flask) -> None:
    """Gives each request an id (X-Request-ID, the caller's or a new one), and counts it by its route."""
    app.before_request(_open)
    app.after_request(_seal)
    app.teardown_request(lambda _: request_id.forget())


def _open() -> None:
    g.began = time.monotonic()
    g.request_id = request_id.accept(request.headers.get("X-Request-ID"))


def _seal(response: Response) -> Response:
    response.headers["X-Request-ID"] = g.request_id
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    # A bounded set of labels, whatever strangers ask for.
    route = request.url_rule.rule if request.url_rule is not None else "unmatched"
    method = request.method if request.method in _METHODS else "other"
    events.emit(events.RequestFinished(method, route, response.status_code, time.monotonic() - g.began))
    return response
