"""Shares connections below an untouched `requests` client, and records what it does on the wire.

`requests.post` builds a Session, uses it once and throws it away, and its connection with it. While an Exchange
runs, `Session.get_adapter` answers one adapter per process instead, which keeps its connections; the Session still
brings the call's own cookies, proxies, netrc and hooks. Outside of an Exchange nothing changes.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import PoolManager
from urllib3.util import Timeout

from .. import request_id
from ..errors import BadReply
from ..models import with_successor
from . import environment
from .connections import POOL_CLASSES
from .exchange import Exchange, current
from .tls import context_for

__all__ = ["install"]

_HOSTS = 32  # hosts whose connections are kept
_CONNECTIONS = 1000  # idle connections kept for a host: the most that LLM_MAX_WORKERS allows
# Of a whole reply, decompressed. Far above any answer (a model's longest, each character escaped, has some 4 MiB); a
# hundred threads that read endless bodies would otherwise take all memory.
_REPLY_LIMIT_BYTES = 16 * 1024 * 1024


def install() -> None:
    """Makes `requests` ask this module for an adapter during exchanges; does nothing when it already does.

    Threads: any.
    """
    if hasattr(requests.Session.get_adapter, "asks_exchange"):
        return
    with _lock:
        environment.install()
        answer = requests.Session.get_adapter
        if hasattr(answer, "asks_exchange"):
            return

        @functools.wraps(answer)
        def get_adapter(session: requests.Session, url: str) -> BaseAdapter:
            adapter = answer(session, url)
            exchange = current()
            return adapter if exchange is None else _Recorder(exchange, adapter)

        get_adapter.asks_exchange = True  # type: ignore[attr-defined]
        requests.Session.get_adapter = get_adapter  # type: ignore[method-assign, assignment]


class _Recorder(BaseAdapter):
    """Sends one request, over the shared adapter if the session's own is a plain one, and records it."""

    def __init__(self, exchange: Exchange, adapter: BaseAdapter) -> None:
        super().__init__()
        self._exchange = exchange
        self._adapter = _stand_in(adapter)

    def send(  # type: ignore[override]  # the rest is handed on as it came
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, **options: Any
    ) -> requests.Response:
        exchange = self._exchange
        request = with_successor(request)
        if (ours := request_id.current()) is not None:
            request.headers.setdefault("X-Request-ID", ours)
        while True:
            exchange.begin_request(urlsplit(request.url or "").path)
            try:
                options["timeout"] = _timeouts(timeout, exchange)
                response = self._adapter.send(request, stream=stream, **options)
                exchange.retry_after = response.headers.get("Retry-After")
                exchange.status, exchange.stale = response.status_code, False
                response.connection = self  # type: ignore[assignment]  # digest authentication sends through it
                if not stream:
                    exchange.phase = "reading"
                    # The Session would read it a moment later, where a failure could not be seen.
                    with _limited(response):
                        exchange.body = response.content
                exchange.phase = "done"
                return response
            except Exception as exc:
                exchange.error = exc
                if not exchange.stale or not self._may_repeat(request):
                    raise
                # The server had closed this kept connection and answered nothing: the next kept one may take the
                # request, and a new one, which is never stale, ends the loop.

    def _may_repeat(self, request: requests.PreparedRequest) -> bool:
        """Whether there is time for it, nobody has aborted it, and its body is not a stream that is used up."""
        exchange = self._exchange
        is_in_time = exchange.deadline is None or time.monotonic() < exchange.deadline
        return is_in_time and exchange.aborted is None and isinstance(request.body, (bytes, str, type(None)))

    def close(self) -> None:
        """Nothing to close: the connections belong to the process."""


class _SharedAdapter(HTTPAdapter):
    """The process's adapter: watched connections, and one TLS context per trust setting."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = POOL_CLASSES

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):  # whose connections are of a kind of their own
            manager.pool_classes_by_scheme = POOL_CLASSES
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        trust: Any
        # Without the files: the context has them loaded, and named here too, each connection would load them again.
        host, trust = super().build_connection_pool_key_attributes(request, True)
        if host["scheme"] == "https":
            context = context_for(verify, cert)
            trust = {"cert_reqs": context.verify_mode.name, "ssl_context": context}
        return host, trust

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Nothing to set for HTTPS: the pool that was found by these settings has their context."""
        if not url.lower().startswith("https"):
            super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]


@contextmanager
def _limited(response: requests.Response) -> Iterator[None]:
    """Reading the body ends in BadReply, and its connection with it, when there is too much of it."""
    raw: Any = response.raw
    read = getattr(raw, "stream", None)
    if read is None:
        yield
        return

    def stream(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        body_bytes = 0
        for piece in read(*args, **kwargs):
            body_bytes += len(piece)
            if body_bytes > _REPLY_LIMIT_BYTES:
                raw.close()
                raise BadReply(f"The API's reply is larger than {_REPLY_LIMIT_BYTES} bytes.")
            yield piece

    raw.stream = stream
    try:
        yield
    finally:
        del raw.stream  # a cycle, which would keep each reply until the next collection


def _timeouts(timeout: Any, exchange: Exchange) -> Any:
    """The client's timeout, its part for reading replaced if that is set, all of it capped by the deadline."""
    if exchange.read_timeout_s is None and exchange.deadline is None:
        return timeout
    if isinstance(timeout, Timeout):
        connect_s, read_s = timeout.connect_timeout, timeout.read_timeout
    else:
        connect_s, read_s = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    if exchange.read_timeout_s is not None:
        read_s = exchange.read_timeout_s
    if exchange.deadline is not None:
        left_s = max(exchange.deadline - time.monotonic(), 0.001)  # 0 would mean "do not block"
        connect_s, read_s = _least(connect_s, left_s), _least(read_s, left_s)
    return connect_s, read_s


def _least(timeout_s: Any, left_s: float) -> float:
    return min(timeout_s, left_s) if isinstance(timeout_s, (int, float)) else left_s


def _stand_in(adapter: BaseAdapter) -> BaseAdapter:
    """The shared adapter if it does what this one would, with the same retries; else the adapter itself."""
    shared = _shared_adapter()
    if type(adapter) is not HTTPAdapter or vars(adapter).keys() != vars(shared).keys():
        return adapter  # of another class, or with a method replaced on the instance
    manager = adapter.poolmanager
    options = {name: value for name, value in manager.connection_pool_kw.items() if name != "maxsize"}
    if type(manager) is not PoolManager or options != {"block": False}:
        return adapter  # pins a certificate, or limits its connections
    if adapter.max_retries.total == 0 and adapter.max_retries.read is False:
        return shared
    twin = _SharedAdapter.__new__(_SharedAdapter)  # not copy.copy, which makes connections of its own
    vars(twin).update(vars(shared), max_retries=adapter.max_retries)
    return twin


_lock = threading.Lock()
_adapter: HTTPAdapter | None = None  # guarded by _lock


def _shared_adapter() -> HTTPAdapter:
    global _adapter
    if _adapter is None:
        with _lock:
            if _adapter is None:
                _adapter = _SharedAdapter(pool_connections=_HOSTS, pool_maxsize=_CONNECTIONS)
    return _adapter


def _after_fork_in_child() -> None:
    # The parent still talks over these connections: the child must neither use nor shut them down.
    global _adapter, _lock
    _adapter, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
