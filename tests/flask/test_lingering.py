"""Connections that have their answer, and what their callers make of them."""

import socket
import threading

import pytest
from support.patience import GIVE_UP_S

from deepseek_client.flask import lingering
from deepseek_client.flask.lingering import Lingering


@pytest.fixture
def connect():
    """Gives a connection: the server's end and the caller's, over TCP."""

    def pair():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            caller = socket.create_connection(listener.getsockname(), GIVE_UP_S)
            server, _ = listener.accept()
        pair.opened.extend((server, caller))
        return server, caller

    pair.opened = []
    yield pair
    for sock in pair.opened:
        sock.close()


@pytest.fixture
def closed(monkeypatch, connect):
    """A semaphore that counts connections of this test which are closed."""
    count = threading.Semaphore(0)
    close = lingering._Connection.close

    def counting(connection):
        close(connection)
        if connection._sock in connect.opened:
            count.release()

    monkeypatch.setattr(lingering._Connection, "close", counting)
    return count


def test_caller_that_keeps_its_side_open(connect, closed):
    """It has the whole answer and its end at once, nobody waits for it, and its connection is closed when it closes."""
    server, caller = connect()
    server.sendall(b"answer")
    Lingering(limit=10).close(server)
    assert (caller.recv(100), caller.recv(100)) == (b"answer", b"")
    assert not closed.acquire(blocking=False)
    caller.close()
    assert closed.acquire(timeout=GIVE_UP_S)


def test_caller_that_never_closes(connect, closed, monkeypatch):
    """After its time it is closed, too."""
    monkeypatch.setattr(lingering, "_LINGER_S", 0.1)
    server, _ = connect()
    Lingering(limit=10).close(server)
    assert closed.acquire(timeout=GIVE_UP_S)
    assert server.fileno() == -1


def test_caller_that_sends_more_than_is_read(connect, closed):
    """It still gets the answer, not a reset: what it sends is read, until that is too much."""
    server, caller = connect()
    caller.sendall(b"x" * 10_000)
    server.sendall(b"answer")
    Lingering(limit=10).close(server)
    assert (caller.recv(100), caller.recv(100)) == (b"answer", b"")
    caller.sendall(b"x" * lingering._MOST_BYTES)
    assert closed.acquire(timeout=GIVE_UP_S)


def test_caller_that_has_gone(connect, closed):
    """Nothing is waited for."""
    server, caller = connect()
    caller.close()
    Lingering(limit=10).close(server)
    assert closed.acquire(timeout=GIVE_UP_S)


def test_too_many(connect, closed):
    """The oldest is closed for one more."""
    servers = [connect()[0] for _ in range(3)]
    all_of_them = Lingering(limit=2)
    for server in servers:
        all_of_them.close(server)
    assert closed.acquire(timeout=GIVE_UP_S)
    assert [server.fileno() == -1 for server in servers] == [True, False, False]


def test_closed_twice(connect, closed):
    """A connection that is closed once more meanwhile is one, whatever its timeout has become."""
    server, caller = connect()
    both = Lingering(limit=10)
    both.close(server)
    server.setblocking(True)
    both.close(server)
    assert len(both._waiting) == 1
    caller.close()
    assert closed.acquire(timeout=GIVE_UP_S)
