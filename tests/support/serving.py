"""HTTP servers of a test's own, and calls that are recorded."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable
from typing import Any

import requests

from deepseek_client.wire import adapter
from deepseek_client.wire.exchange import Exchange, Rules

from .patience import GIVE_UP_S

RULES = Rules(reply_limit_bytes=100_000, stays_at_origin=True)


def exchanged(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Exchange:
    """The exchange of one call of the function, after it ended."""
    adapter.install()
    exchange: Exchange = Exchanged(functools.partial(function, *args, **kwargs), rules=RULES)()
    return exchange


class Exchanged(Exchange):
    """An exchange that runs one function, and keeps what that returned or raised.

    Args:
        judge: called with this exchange after the function ended; gives what calling the exchange gives.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        judge: Callable[[Any], Any] = lambda exchange: exchange,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.function = function
        self.judge = judge
        self.result: Any = None
        self.raised: Exception | None = None

    def __call__(self) -> Any:
        if self.aborted is None:
            try:
                with self:
                    self.result = self.function()
            except Exception as exc:
                self.raised = exc
        return self.judge(self)


def ask(url: str, model: str = "deepseek-flash") -> requests.Response:
    """One completion as a naive client asks for it."""
    return requests.post(
        f"{url}/chat/completions",
        headers={"Authorization": "Bearer sk-test"},
        json={"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50},
        timeout=GIVE_UP_S,
    )


class _Listening(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # more than the usual 5 at once would try again after one second, then three
    daemon_threads = True
    block_on_close = False


class Server:
    """An HTTP server of one test: answers every request by `answer(handler)`, and keeps what came."""

    def __init__(self, answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = GIVE_UP_S

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.do_GET()

            def do_GET(self) -> None:
                outer.requests.append((self.path, dict(self.headers)))
                answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = _Listening(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def reply(handler: Any, status: int = 200, body: bytes = b"{}", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
