"""Connections whose both ends a test holds, over loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["connected", "tcp_pair", "unix_pair"]


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


def connected(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A caller's end of a connection to the listener, and the server's."""
    client = socket.create_connection(listener.getsockname(), timeout=60)
    server, _ = listener.accept()
    return client, server
