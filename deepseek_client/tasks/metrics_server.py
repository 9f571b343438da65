"""The metrics of a worker, which has no web server, on a port of their own."""

from __future__ import annotations

import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ..telemetry import metrics

__all__ = ["MetricsServer"]

_logger = logging.getLogger(__name__)


class MetricsServer:
    """Answers `GET /metrics`.

    Args:
        address: "host:port" of WORKER_METRICS. One that is taken costs the metrics, not the worker.

    Threads: `start` begins one, and each request has one.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Serves from now on."""
        host, _, port = self._address.rpartition(":")
        try:
            self._server = ThreadingHTTPServer((host, int(port)), _Page)
        except OSError as exc:
            _logger.warning("WORKER_METRICS=%s cannot be served: %s", self._address, exc)
            return
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="worker-metrics", daemon=True).start()

    def stop(self) -> None:
        """Serves no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Page(BaseHTTPRequestHandler):
    timeout = 10

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        body, content_type = metrics.exposition()
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
