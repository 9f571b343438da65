"""Watched sockets: ended from outside, never under somebody else, and unknown to code that is in no call."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from support.exchanges import Running, in_exchange
from support.patience import GIVE_UP_S
from support.sockets import connected

from deepseek_client.wire import sockets
from deepseek_client.wire.exchange import Interrupted, Rules
from deepseek_client.wire.sockets import WatchedSocket

pytestmark = pytest.mark.usefixtures("installed")


def test_sockets_outside_of_a_call_stay_as_they_are(listener):
    """Code that is in no call gets sockets of the class that it asked for."""
    client, server = connected(listener)
    with client, server:
        assert type(client) is socket.socket


def test_a_socket_that_connects_in_a_call_is_watched(listener):
    """A socket that connects inside of a call becomes a watched one, and remains a socket."""
    seen: list[Any] = []

    def connect() -> None:
        with socket.create_connection(listener.getsockname()) as client:
            seen.append(client)

    in_exchange(connect)
    assert type(seen[0]) is WatchedSocket
    assert isinstance(seen[0], socket.socket)


def test_a_subclass_and_a_datagram_are_left_alone(listener):
    """A library's own class of sockets keeps it, and so does what is no stream."""

    class Own(socket.socket):
        pass

    def connect() -> list[type]:
        with Own() as own, socket.socket(type=socket.SOCK_DGRAM) as datagram:
            own.connect(listener.getsockname())
            datagram.connect(listener.getsockname())
            return [type(own), type(datagram)]

    classes: list[type] = []
    in_exchange(lambda: classes.extend(connect()))
    assert classes == [Own, socket.socket]


@pytest.mark.parametrize("timeout_s", [None, 60], ids=["blocking", "with a timeout"])
def test_an_abort_is_no_end_of_file(listener, timeout_s):
    """What an abort ends raises an Interrupted, which no `except Exception` sees, and raises it at each further use."""
    outcomes: list[str] = []
    is_connected = threading.Event()

    def read() -> None:
        with socket.create_connection(listener.getsockname(), timeout=timeout_s) as client:
            is_connected.set()
            for _ in range(2):
                try:
                    client.recv(1)
                except Exception:
                    outcomes.append("caught")
                except Interrupted:
                    outcomes.append("interrupted")

    running = Running(read)
    server, _ = listener.accept()
    with server:
        assert is_connected.wait(GIVE_UP_S)
        assert running.aborted() is None
    assert outcomes == ["interrupted", "interrupted"]


def test_a_client_that_may_catch_its_end_cannot_for_ever(listener):
    """A client that answers for itself gets OSErrors, and one that always tries again is ended all the same."""
    caught: list[OSError] = []

    def stubborn() -> None:
        while True:
            try:
                with socket.create_connection(listener.getsockname()) as client:
                    client.recv(1)
            except OSError as exc:
                caught.append(exc)

    running = Running(stubborn, rules=Rules())
    server, _ = listener.accept()
    with server:
        assert isinstance(running.aborted(), Interrupted)
    assert caught
    assert all(isinstance(exc, ConnectionAbortedError) for exc in caught)


def test_a_sleep_ends():
    """A client's pause between two tries ends with its call."""
    assert isinstance(Running(lambda: time.sleep(60)).aborted(), Interrupted)


def test_a_sleep_in_the_callers_own_thread_ends_at_the_deadline():
    """Where nobody stands outside, a pause ends at the deadline by itself."""
    running = Running(lambda: time.sleep(60), deadline=time.monotonic() + 0.05)
    assert isinstance(running.ended(), Interrupted)
    assert running.exchange.aborted == "deadline"


def test_a_sleep_outside_of_a_call_is_the_systems(monkeypatch):
    """`time.sleep` still takes what it took, and refuses what it refused."""
    time.sleep(0)
    with pytest.raises(ValueError, match="non-negative"):
        time.sleep(-1)
    with pytest.raises(TypeError):
        in_exchange(lambda: time.sleep("long"))  # type: ignore[arg-type]


def test_a_timeout_of_the_clients_comes_back(listener):
    """The deadline caps a read in the caller's own thread; the socket keeps the timeout that the client gave it."""
    timeouts: list[float | None] = []

    def read() -> None:
        with socket.create_connection(listener.getsockname(), timeout=60) as client:
            with suppress(ConnectionAbortedError):
                client.recv(1)
            timeouts.append(client.gettimeout())

    running = Running(read, deadline=time.monotonic() + 0.05, rules=Rules())
    assert running.ended() is None
    assert running.exchange.aborted == "deadline"
    assert timeouts == [60]


class TestSharedConnections:
    """A connection that several calls use at once is not ended under one of them."""

    def test_it_is_left_to_the_other(self, listener):
        """A call waits for its reply on a connection that a second one has written to: the second's end spares it."""
        client, server = self.of_a_pool(listener)
        with client, server:
            first = Running(lambda: (client.sendall(b"1"), client.recv(1))[1])
            assert server.recv(1) == b"1"
            gate = threading.Event()
            second = Running(lambda: (client.sendall(b"2"), gate.wait(GIVE_UP_S)))
            assert server.recv(1) == b"2"
            second.exchange.abort("cancelled")
            server.sendall(b"!")
            assert first.ended() is None
            assert first.exchange.result == b"!"
            gate.set()
            second.ended()

    def test_it_is_ended_when_all_are_over(self, listener):
        """When each call on it was aborted, it is shut down, and the thread comes back."""
        client, server = self.of_a_pool(listener)
        with client, server:
            first = Running(lambda: (client.sendall(b"1"), client.recv(1)))
            assert server.recv(1) == b"1"
            gate = threading.Event()
            second = Running(lambda: (client.sendall(b"2"), gate.wait(GIVE_UP_S)))
            assert server.recv(1) == b"2"
            first.exchange.abort("cancelled")
            assert first._thread.is_alive()
            second.exchange.abort("cancelled")
            first.ended()
            gate.set()
            second.ended()

    def test_one_after_the_other_is_not_shared(self, listener):
        """A call that has read its reply has let go: the next on its connection is ended though the first goes on."""
        client, server = self.of_a_pool(listener)
        with client, server:
            gate = threading.Event()
            first = Running(lambda: (client.sendall(b"1"), client.recv(1), gate.wait(GIVE_UP_S)))
            assert server.recv(1) == b"1"
            server.sendall(b"!")
            while first.exchange.sockets[client].is_busy:
                time.sleep(0)
            second = Running(lambda: (client.sendall(b"2"), client.recv(1)))
            assert server.recv(1) == b"2"
            assert isinstance(second.aborted(), Interrupted)
            gate.set()
            first.ended()

    @staticmethod
    def of_a_pool(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
        """A watched connection that its call has given back."""
        made: list[socket.socket] = []
        in_exchange(lambda: made.append(socket.create_connection(listener.getsockname(), timeout=60)))
        server, _ = listener.accept()
        server.settimeout(GIVE_UP_S)
        return made[0], server


def test_a_method_that_another_library_has_replaced_stays(monkeypatch):
    """A guard in the place of socket.connect is not taken away, nor wrapped."""

    def guard(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(sockets, "is_installed", False)
    monkeypatch.setattr(socket.socket, "connect", guard)
    sockets.install()
    assert socket.socket.connect is guard
    assert not sockets.is_installed


def test_a_connect_in_the_callers_own_thread_ends_at_the_deadline():
    """A connection attempt that nobody answers ends by an Interrupted also where nobody stands outside."""
    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (one, two):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        running = Running(
            lambda: socket.create_connection(full.getsockname()), deadline=time.monotonic() + 0.05
        )
        assert isinstance(running.ended(), Interrupted)
        assert running.exchange.aborted == "deadline"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/fd")
def test_an_aborted_connect_leaves_no_descriptor():
    """A connection attempt that is ended closes its socket: nobody else would."""
    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (one, two):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        before = len(os.listdir("/dev/fd"))
        running = Running(lambda: socket.create_connection(full.getsockname()))
        assert isinstance(running.aborted(), Interrupted)
        assert len(os.listdir("/dev/fd")) <= before
