"""Shares connections below an untouched `requests` client, and records what it does on the wire.

`requests.post` builds a Session, uses it once and throws it away, and its connection with it. While an Exchange
runs, `Session.get_adapter` answers one adapter per process instead, which keeps its connections; the Session still
brings the call's own cookies, proxies, netrc and hooks. Outside of an Exchange nothing changes.
"""

from __future__ import annotations

import codecs
import functools
import os
import time
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.utils import guess_json_utf
from urllib3 import PoolManager
from urllib3.util import Timeout

from .. import request_id
from ..errors import BadReply, ConnectionFailed
from ..fork_safe import ForkSafeLock
from . import environment, oneshot, originals, sockets
from .connections import POOL_CLASSES
from .exchange import Exchange, current
from .failures import printable
from .redirects import redirect_of
from .replies import watched
from .tls import context_for

__all__ = ["install"]

_HOSTS = 32  # hosts whose connections are kept
_POOL_OPTIONS = {"maxsize", "block"}  # with which HTTPAdapter makes its pools
_CONNECTIONS = 1000  # idle connections kept for a host: the most that LLM_MAX_WORKERS allows
_TARGETS = 100  # URLs that are known by heart
_PIECE_BYTES = 64 * 1024
# `requests` guesses the charset of a reply that names none, which takes seconds for megabytes. A larger one is UTF-8.
_GUESS_LIMIT_BYTES = 64 * 1024
_REASON_CHARS = 200


def install() -> None:
    """Has sockets watched and `requests` ask this module for an adapter during exchanges; once.

    Threads: any.
    """
    if not sockets.is_installed:
        sockets.install()
    session = requests.Session
    if hasattr(session.get_adapter, "asks_exchange") and hasattr(session.send, "asks_exchange"):
        return
    with _lock:
        environment.install()
        session.get_adapter = _asking(session.get_adapter)  # type: ignore[method-assign]
        session.send = _telling(session.send)  # type: ignore[method-assign]
        oneshot.install(_adapter_of_new_session)


def _asking(answer: Any) -> Any:
    if hasattr(answer, "asks_exchange"):
        return answer

    @functools.wraps(answer)
    def get_adapter(session: requests.Session, url: str) -> Any:
        adapter = answer(session, url)
        exchange = current()
        return adapter if exchange is None else _Recorder(exchange, adapter)

    get_adapter.asks_exchange = True  # type: ignore[attr-defined]
    return get_adapter


def _telling(answer: Any) -> Any:
    """`Session.send` that tells the exchange of a reply which did not come through an adapter of ours.

    Recorders and mocks replace `get_adapter` on the session itself, or the whole of `send`.
    """
    if hasattr(answer, "asks_exchange"):
        return answer

    @functools.wraps(answer)
    def send(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> Any:
        exchange = current()
        if exchange is None:
            return answer(session, request, **options)
        requests_before = exchange.requests
        try:
            response = answer(session, request, **options)
            if exchange.requests == requests_before:
                exchange.begin_request(urlsplit(request.url or "").path)
                _keep(exchange, response, is_streamed=bool(options.get("stream")))
            return response
        except Exception as exc:
            if exchange.requests == requests_before:
                exchange.begin_request(urlsplit(request.url or "").path)
                exchange.error = exc
            raise

    send.asks_exchange = True  # type: ignore[attr-defined]
    return send


def _adapter_of_new_session(exchange: Exchange, url: str) -> _Recorder | None:
    """What a Session that has only been made sends by; None if that would not be the shared adapter."""
    if requests.adapters.DEFAULT_RETRIES or not originals.are_in_place():
        return None
    if not url.lower().startswith(("http://", "https://")):
        return None
    return _Recorder(exchange, _adapter or _shared_adapter())


class _Recorder:
    """Sends one request, over the shared adapter if the session's own is a plain one, and records it."""

    def __init__(self, exchange: Exchange, adapter: BaseAdapter) -> None:
        self._exchange = exchange
        self._adapter = _stand_in(adapter)

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, **options: Any
    ) -> requests.Response:
        exchange, prepared = self._exchange, request
        if exchange.rules.rewrite is not None:
            request = exchange.rules.rewrite(request)
        if (ours := request_id.current()) is not None:
            request.headers.setdefault("X-Request-ID", ours)
        while True:
            exchange.begin_request(urlsplit(request.url or "").path)
            try:
                if exchange.redirect is not None:
                    exchange.redirect = exchange.redirect.followed_by(
                        prepared, exchange.rules.stays_at_origin
                    )
                options["timeout"] = _timeouts(timeout, exchange)
                response = self._adapter.send(request, stream=stream, **options)
                exchange.stale = False
                response.connection = self  # type: ignore[assignment]  # digest authentication sends through it
                if 300 <= response.status_code < 400:
                    exchange.redirect = redirect_of(prepared, response) or exchange.redirect
                if isinstance(self._adapter, _SharedAdapter):
                    _keep(exchange, response, is_streamed=stream)
                else:
                    with watched(exchange, response):
                        _keep(exchange, response, is_streamed=stream)
                exchange.phase = "done"
                return response
            except requests.exceptions.InvalidHeader as exc:
                # urllib3 says so of a reply; a request's own headers were looked at when it was prepared.
                what = (
                    "states two different lengths"
                    if "Content-Length" in str(exc)
                    else "has a malformed header"
                )
                exchange.error = ConnectionFailed(f"The API's reply {what}.")
                exchange.error.__cause__ = exc
                # Not as it is: it quotes the header, whatever that holds, and clients log it.
                raise requests.exceptions.InvalidHeader(str(exchange.error), request=request) from None
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
        manager: Any = self.poolmanager
        manager.pool_classes_by_scheme = POOL_CLASSES
        manager.targets = {}  # what `request_url` says of a URL
        manager.found = {}  # pools by what `get_connection_with_tls_context` was asked for

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """The pool for a request; found again by its origin and its trust, of which urllib3 makes a key each time."""
        end = request.url.find("/", len("https://"))
        if proxies or end < 0:
            return super().get_connection_with_tls_context(request, verify, proxies, cert)
        origin = request.url[:end]
        context = context_for(verify, cert) if origin.startswith("https") else None
        manager: Any = self.poolmanager
        pool = manager.found.get((origin, context))
        if pool is None or pool.pool is None:  # new, or closed since
            pool = super().get_connection_with_tls_context(request, verify, proxies, cert)
            if len(manager.found) >= _HOSTS:
                manager.found.clear()
            manager.found[origin, context] = pool
        return pool

    def close(self) -> None:
        """Closes the connections that no request has: urllib3 closes a pool when nobody holds it any more."""
        manager: Any = self.poolmanager
        manager.found.clear()
        super().close()

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        """The response; without a cookie in the reply none is looked for, which takes longer than all the rest."""
        reply = resp._original_response
        if reply is None or "set-cookie" in resp.headers or "set-cookie2" in resp.headers:
            return super().build_response(req, resp)
        resp._original_response = None
        try:
            return super().build_response(req, resp)
        finally:
            resp._original_response = reply

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

    def request_url(self, request: Any, proxies: Any) -> str:
        """What the request line names; without a proxy it depends on the URL alone."""
        if proxies or type(request) is not requests.PreparedRequest:
            return super().request_url(request, proxies)
        manager: Any = self.poolmanager
        url: str | None = manager.targets.get(request.url)
        if url is None:
            if len(manager.targets) >= _TARGETS:
                manager.targets.clear()
            url = manager.targets[request.url] = super().request_url(request, proxies)
        return url

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Nothing to set for HTTPS: the pool that was found by these settings has their context."""
        if not url.lower().startswith("https"):
            super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]


def _keep(exchange: Exchange, response: requests.Response, *, is_streamed: bool) -> None:
    """Keeps what a reply is for whoever judges the exchange, and makes it harmless for who logs and parses it."""
    exchange.response = response
    if response.reason and (len(response.reason) > _REASON_CHARS or not response.reason.isprintable()):
        response.reason = printable(response.reason[:_REASON_CHARS])
    if is_streamed:
        return
    exchange.phase = "reading"
    # The Session would read it a moment later, where a failure could not be seen.
    exchange.body = body = _read(response, exchange.rules.reply_limit_bytes)
    if len(body) > _GUESS_LIMIT_BYTES and (response.encoding is None or _is_of_hosts(response.encoding)):
        response.encoding = guess_json_utf(body) or "utf-8"  # type: ignore[no-untyped-call]


def _is_of_hosts(encoding: str) -> bool:
    """Whether no text has this charset but a host's name, of which a long one would take minutes to decode."""
    try:
        return codecs.lookup(encoding).name in ("idna", "punycode")
    except (LookupError, ValueError):
        return False


def _read(response: Any, limit_bytes: int | None) -> bytes:
    """The response's whole content, which the response has from then on.

    Raises:
        BadReply: there is too much of it; its connection is closed.
    """
    if response._content is not False or response.raw is None:
        return response.content or b""
    pieces, body_bytes = [], 0
    # In one piece where its length is known: urllib3 looks for more after each piece that is shorter than asked for.
    left_bytes = getattr(response.raw, "length_remaining", None)
    is_small = isinstance(left_bytes, int) and 0 < left_bytes < _PIECE_BYTES
    try:
        for piece in response.iter_content(left_bytes if is_small else _PIECE_BYTES):
            body_bytes += len(piece)
            if limit_bytes is not None and body_bytes > limit_bytes:
                raise BadReply(f"The API's reply is larger than {limit_bytes} bytes.")
            pieces.append(piece)
    except Exception:
        response.close()  # and its connection: nobody knows what is still to come on it
        raise
    response._content = body = b"".join(pieces)
    return body


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
        if not isinstance(connect_s, (int, float)) or connect_s > left_s:
            connect_s = left_s
        if not isinstance(read_s, (int, float)) or read_s > left_s:
            exchange.overruled_timeout_s = read_s if isinstance(read_s, (int, float)) else None
            read_s = left_s
    return connect_s, read_s


def _stand_in(adapter: BaseAdapter) -> BaseAdapter:
    """The shared adapter if it does what this one would, with the same retries; else the adapter itself."""
    shared = _adapter or _shared_adapter()
    if type(adapter) is not HTTPAdapter or vars(adapter).keys() != vars(shared).keys():
        return adapter  # of another class, or with a method replaced on the instance
    manager = adapter.poolmanager
    options = manager.connection_pool_kw
    if type(manager) is not PoolManager or options.keys() != _POOL_OPTIONS or options["block"] is not False:
        return adapter  # pins a certificate, or limits its connections
    if not originals.are_in_place():
        return adapter
    if adapter.max_retries.total == 0 and adapter.max_retries.read is False:
        return shared
    twin = _SharedAdapter.__new__(_SharedAdapter)  # not copy.copy, which makes connections of its own
    vars(twin).update(vars(shared), max_retries=adapter.max_retries)
    return twin


_lock = ForkSafeLock()
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
    global _adapter
    _adapter = None


os.register_at_fork(after_in_child=_after_fork_in_child)
