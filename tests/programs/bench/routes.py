"""Part c: what a Flask route costs that does nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from flask import Flask
from werkzeug.test import EnvironBuilder

from deepseek_client.flask import SharedLoop

__all__ = ["measure"]

_CHUNK = 100


def measure(spec: dict[str, Any]) -> dict[str, float]:
    """Wall and CPU time of a request, called as a WSGI server does: the median of `count` chunks of 100."""
    app, environ = _app(spec["peer"]), EnvironBuilder("/").get_environ()
    _request_many(app, environ)
    walls_us, cpus_us = [], []
    for _ in range(spec["count"]):
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        _request_many(app, environ)
        walls_us.append((time.perf_counter() - wall_s) / _CHUNK * 1e6)
        cpus_us.append((time.process_time() - cpu_s) / _CHUNK * 1e6)
    return {"wall_us": statistics.median(walls_us), "cpu_us": statistics.median(cpus_us)}


def _app(kind: str) -> Flask:
    app = Flask("routes")

    def view() -> dict[str, str]:
        return {"text": "ok"}

    async def async_view() -> dict[str, str]:
        return {"text": "ok"}

    views: dict[str, Callable[..., Any]] = {"sync view": view}
    app.add_url_rule("/", view_func=views.get(kind, async_view))
    if kind == "SharedLoop async view":
        SharedLoop(app)
    return app


def _request_many(app: Flask, environ: dict[str, Any]) -> None:
    for _ in range(_CHUNK):
        statuses: list[str] = []
        body = app(environ.copy(), lambda status, headers, *rest, to=statuses: to.append(status))
        if statuses != ["200 OK"] or b"ok" not in b"".join(body):
            raise RuntimeError(f"the route answered {statuses}")
