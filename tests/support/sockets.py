"""Connections whose both ends a test holds, over loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["tcp_pair", "unix_pair"]


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A server's end of a connection, and its caller's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        caller = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with server, caller:
        yield server, caller


@contextmanager
def unix_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The same over a unix socket."""
    server, caller = socket.socketpair()
    with server, caller:
        yield server, caller
