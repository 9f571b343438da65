"""Shares connections below an untouched `requests` client, and records what it does on the wire.

`requests.post` builds a Session, uses it once and throws it away, and its connection with it. While an Exchange
runs, `Session.get_adapter` answers one adapter per process instead, which keeps its connections; the Session still
brings the call's own cookies, proxies, netrc and hooks. Outside of an Exchange nothing changes.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
from typing import Any

import requests
from requests.adapters import BaseAdapter, HTTPAdapter

from .exchange import Exchange, current

__all__ = ["install"]

_logger = logging.getLogger(__name__)

# Source: the vendor retired these names on 2026-07-24; each was DeepSeek V4 Flash, without and with thinking.
_SUCCESSOR = "deepseek-flash"
_RETIRED = {"deepseek-chat": "disabled", "deepseek-reasoner": "enabled"}
_told: set[str] = set()  # retired models whose replacement was logged

_HOSTS = 32  # hosts whose connections are kept
_CONNECTIONS = 1000  # idle connections kept for a host: the most that LLM_MAX_WORKERS allows


def install() -> None:
    """Makes `requests` ask this module for an adapter during exchanges; does nothing when it already does.

    Threads: any.
    """
    if hasattr(requests.Session.get_adapter, "asks_exchange"):
        return
    with _lock:
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
        self._adapter = _shared_adapter() if _is_plain(adapter) else adapter

    def send(  # type: ignore[override]  # the rest is handed on as it came
        self, request: requests.PreparedRequest, stream: bool = False, **options: Any
    ) -> requests.Response:
        exchange = self._exchange
        exchange.begin_request()
        try:
            response = self._adapter.send(_with_successor(request), stream=stream, **options)
            exchange.retry_after = response.headers.get("Retry-After")
            exchange.status = response.status_code
            response.connection = self  # type: ignore[assignment]  # digest authentication sends its second request through this
            if not stream:
                # The Session would read it a moment later, where a failure could not be seen.
                exchange.body = response.content
        except Exception as exc:
            exchange.error = exc
            raise
        return response

    def close(self) -> None:
        """Nothing to close: the connections belong to the process."""


def _is_plain(adapter: BaseAdapter) -> bool:
    """Whether the shared adapter does exactly what this one would."""
    return (
        type(adapter) is HTTPAdapter and adapter.max_retries.total == 0 and adapter.max_retries.read is False
    )


def _with_successor(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """The request, or a copy in which a retired model is replaced by what it was."""
    body = request.body.encode() if isinstance(request.body, str) else request.body
    if not isinstance(body, bytes) or not any(name.encode() in body for name in _RETIRED):
        return request
    try:
        fields = json.loads(body)
    except ValueError:
        return request
    model = fields.get("model") if isinstance(fields, dict) else None
    if not isinstance(model, str) or model not in _RETIRED:
        return request
    if model not in _told:
        _told.add(model)
        _logger.warning(
            "model %s is retired: it goes out as %s with thinking %s", model, _SUCCESSOR, _RETIRED[model]
        )
    fields["model"] = _SUCCESSOR
    fields.setdefault("thinking", {"type": _RETIRED[model]})
    request = request.copy()
    request.body = json.dumps(fields).encode()
    request.headers["Content-Length"] = str(len(request.body))
    return request


_lock = threading.Lock()
_adapter: HTTPAdapter | None = None  # guarded by _lock


def _shared_adapter() -> HTTPAdapter:
    global _adapter
    if _adapter is None:
        with _lock:
            if _adapter is None:
                _adapter = HTTPAdapter(pool_connections=_HOSTS, pool_maxsize=_CONNECTIONS)
    return _adapter


def _after_fork_in_child() -> None:
    # The parent still talks over these connections: the child must neither use nor shut them down.
    global _adapter, _lock
    _adapter, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
