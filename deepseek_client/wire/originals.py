"""Whether the functions and classes below the client are still those that the wire was made for.

Recorders, proxies and trust stores put their own in the place of `socket.socket`, `ssl.SSLContext` and others.
Connections that the wire makes itself would pass them by: send what a recorder should answer, connect past a proxy,
trust whom the trust store does not. So where one is replaced, calls use what `requests` uses by itself.
"""

from __future__ import annotations

import logging
import operator
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import connection, ssl_

from .sockets import WatchedSocket

__all__ = ["Original", "Originals", "are_in_place", "home_of"]

_logger = logging.getLogger(__name__)


class Original(NamedTuple):
    """A name whose value this package was made for.

    Attributes:
        owner: the module or class that has it.
        home: the module that defines it.
    """

    owner: Any
    name: str
    home: str


class Originals:
    """Names that others may replace, and whether all of them are what they were.

    Args:
        originals: those that the installed versions do not have are left out.
        tell: called with those that are not in their places, for each new answer of no.

    Threads: any.
    """

    def __init__(self, originals: Iterable[Original], tell: Callable[[list[Original]], None] | None = None):
        self._originals = [it for it in originals if hasattr(it.owner, it.name)]
        self._owners = [it.owner for it in self._originals]
        self._names = [it.name for it in self._originals]
        self._tell = tell
        # What was found there last, and whether all of it is original: read and written in one step.
        self._found: tuple[list[Any], bool] | None = None

    def are_in_place(self) -> bool:
        """Whether all are in their places."""
        # Names and owners go hand in hand through C code: this is asked for every request.
        now = list(map(getattr, self._owners, self._names))
        found = self._found
        if found is None or any(map(operator.is_not, now, found[0])):  # a proxy may equal what it stands for
            foreign = [
                it for it, value in zip(self._originals, now, strict=True) if not _is_original(it, value)
            ]
            answer = _IS_URLLIB3 and not foreign
            if not answer and self._tell is not None:
                self._tell(foreign)
            self._found = found = (now, answer)
        return found[1]


_BELOW_THE_ADAPTER = [
    Original(socket, "socket", "socket"),
    Original(socket.socket, "connect", "_socket"),
    Original(socket, "create_connection", "socket"),
    Original(connection, "create_connection", connection.__name__),
    Original(ssl, "SSLContext", "ssl"),
    Original(ssl_, "SSLContext", "ssl"),
    Original(ssl_, "create_urllib3_context", ssl_.__name__),
    Original(urllib3.connection, "create_urllib3_context", ssl_.__name__),
    Original(urllib3.connection, "HTTPConnection", urllib3.connection.__name__),
    Original(urllib3.connection.HTTPConnection, "_new_conn", urllib3.connection.__name__),
    Original(urllib3.HTTPConnectionPool, "ConnectionCls", urllib3.connection.__name__),
    Original(urllib3.HTTPSConnectionPool, "ConnectionCls", urllib3.connection.__name__),
    Original(requests.adapters, "PoolManager", urllib3.poolmanager.__name__),
    Original(HTTPAdapter, "send", requests.adapters.__name__),
    Original(HTTPAdapter, "cert_verify", requests.adapters.__name__),
    Original(HTTPAdapter, "request_url", requests.adapters.__name__),
    Original(requests.adapters, "select_proxy", requests.utils.__name__),
    Original(HTTPAdapter, "build_connection_pool_key_attributes", requests.adapters.__name__),
    Original(HTTPAdapter, "get_connection_with_tls_context", requests.adapters.__name__),
]
# urllib3-future has it, which takes urllib3's place on disk
_IS_URLLIB3 = not hasattr(urllib3, "AsyncPoolManager")


def _is_original(it: Original, value: Any) -> bool:
    home = home_of(value)
    if home.startswith(f"{__package__}.") and hasattr(value, "__wrapped__"):  # ours, around what was there
        return _is_original(it, value.__wrapped__)
    if it.owner is socket and it.name == "socket":
        # gevent's own, if it was there before this package: the wire's sockets are made from it.
        return value in WatchedSocket.__mro__ and (home == it.home or home.startswith("gevent."))
    return home == it.home or home.startswith(("gevent.", f"{__package__}."))


def home_of(value: Any) -> str:
    """The module that a function's or a class's code is from, whatever `functools.wraps` or a proxy says.

    Threads: any.
    """
    kind = type(value).__module__
    if kind != "builtins":  # no function and no class: a proxy, which lends its target's attributes
        return kind
    scope = getattr(value, "__globals__", None) or {}
    owner = getattr(value, "__objclass__", None)  # of a method that is written in C
    return str(scope.get("__name__") or getattr(owner or value, "__module__", ""))


_told: set[str] = set()


def _warn_of(foreign: list[Original]) -> None:
    what = ", ".join(f"{getattr(it.owner, '__name__', it.owner)}.{it.name}" for it in foreign) or "urllib3"
    if what not in _told:
        _told.add(what)
        _logger.warning(
            "%s has been replaced by another library: calls go out over it, and no longer share connections; one that "
            "connects, or shakes hands, may end later than its deadline", what,
        )  # fmt: skip


are_in_place = Originals(_BELOW_THE_ADAPTER, _warn_of).are_in_place
"""Whether all that lies below an adapter of `requests` is in its place; a new answer of no is logged.

Threads: any.
"""
