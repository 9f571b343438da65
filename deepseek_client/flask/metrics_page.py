"""GET /metrics, where the application has none."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, current_app, request, request_started

from ..telemetry import metrics
from . import envelope

__all__ = ["MetricsPage", "metrics_view"]


def metrics_view() -> Response:
    """The metrics of all processes as Prometheus text: a view, for an application that gives it a route of its own.

    Threads: any.
    """
    body, content_type = metrics.exposition()
    return Response(body, content_type=content_type)


class MetricsPage:
    """Answers GET `path`, unless the application has a route for exactly that path, whenever it is registered.

    A route that catches every path is none for this one. The application's `before_request` functions come first:
    what they refuse is refused here too.

    Threads: stateless.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def init_app(self, app: Flask) -> None:
        """Serves the page in this application."""
        app.before_request(self._serve)
        request_started.connect(self._stay_last, app, weak=False)

    def _serve(self) -> Response | None:
        is_asked = request.path == self._path and request.method in ("GET", "HEAD")
        if not is_asked or self._is_of_the_application():
            return None
        envelope.name_route(self._path)
        return metrics_view()

    def _is_of_the_application(self) -> bool:
        # A route with a slash at its end answers a request without it by a redirect.
        exact = self._path.rstrip("/")
        return any(rule.rule.rstrip("/") == exact for rule in current_app.url_map.iter_rules())

    def _stay_last(self, app: Flask, **_: Any) -> None:
        functions = app.before_request_funcs[None]
        if functions[-1] != self._serve:
            # A new list: another thread may be going through the old one.
            others = [function for function in functions if function != self._serve]
            app.before_request_funcs[None] = [*others, self._serve]
