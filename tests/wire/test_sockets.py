"""Watched sockets: ended from outside, never under somebody else, and unknown to code that is in no call."""

from __future__ import annotations

import errno
import logging
import os
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from support.blocking import GIVE_UP_S
from support.serving import Exchanged

from deepseek_client.wire import blocked, sockets, waiting, watchdog
from deepseek_client.wire.exchange import Exchange, Interrupted, Rules
from deepseek_client.wire.sockets import WatchedSocket

FINAL = Rules(may_catch_end=False)
on_linux = pytest.mark.skipif(
    not blocked._targets_of, reason="the system does not tell what a thread waits in"
)


@pytest.fixture(autouse=True)
def installed() -> None:
    sockets.install()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(GIVE_UP_S)
        yield listener


def connected(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(listener.getsockname(), timeout=60)
    server, _ = listener.accept()
    return client, server


class Running:
    """A function in an exchange, on a thread of its own."""

    def __init__(self, function: Callable[[], Any], **options: Any) -> None:
        self.interruption: BaseException | None = None
        self.inside = threading.Event()
        self._function = function
        options.setdefault("rules", FINAL)
        self.exchange = Exchanged(self._run, **options)
        self._thread = threading.Thread(target=self.exchange, daemon=True)
        self._thread.start()
        assert self.inside.wait(GIVE_UP_S)

    def _run(self) -> Any:
        self.inside.set()
        try:
            return self._function()
        except BaseException as exc:
            self.interruption = exc

    def ended(self) -> BaseException | None:
        """What its method raised; fails if it does not end."""
        self._thread.join(GIVE_UP_S)
        assert not self._thread.is_alive()
        return self.interruption

    def aborted(self) -> BaseException | None:
        self.exchange.abort("cancelled")
        return self.ended()


def in_exchange(function: Callable[[], Any], **options: Any) -> Any:
    running = Running(function, **options)
    error = running.ended()
    if error is not None:
        raise error
    return running.exchange


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


@on_linux
class TestWhatPythonCannotSee:
    """A thread that is blocked in a system call on a socket that is not watched is found there."""

    @pytest.mark.parametrize("way", ["recv", "send", "select", "poll", "epoll"])
    def test_it_is_ended(self, listener, way):
        """Whatever it waits by, its connection is shut down, and it returns."""
        client, server = connected(listener)

        def wait() -> Any:
            if way == "recv":
                return client.recv(1)
            if way == "send":
                return client.sendall(bytes(100_000_000))
            if way == "select":
                return select.select([client], [], [])
            poll = getattr(select, way)()
            poll.register(client, select.POLLIN)
            return poll.poll()

        with client, server:
            client.setblocking(True)
            error = Running(wait).aborted()
            assert error is None or isinstance(error, OSError)

    def test_the_next_call_of_its_thread_is_not_ended(self, listener):
        """A worker that is back, and blocked for its next caller by the time that it is looked at, is left alone."""
        client, server = connected(listener)
        inside, got = threading.Event(), []
        with client, server:
            client.setblocking(True)

            def work() -> None:
                with exchange:
                    pass
                inside.set()
                got.append(client.recv(1))

            exchange = Exchange(rules=FINAL)
            worker = threading.Thread(target=work)
            worker.start()
            assert inside.wait(GIVE_UP_S)
            while not blocked._look_at(worker.native_id):  # until it is blocked
                assert worker.is_alive()
            exchange.end_again()
            server.sendall(b"!")
            worker.join(GIVE_UP_S)
        assert got == [b"!"]

    def test_the_thread_of_an_event_loop_is_left_alone(self, listener):
        """What a loop waits for belongs to everybody on it: a call that runs there is ended by its waiter alone."""
        client, server = connected(listener)
        got = []
        with client, server:

            def work() -> None:
                waiting.set_current(SimpleNamespace(is_here=lambda: True))  # type: ignore[arg-type]
                with exchange:
                    got.append(os.read(client.fileno(), 1))

            client.setblocking(True)
            exchange = Exchange(rules=FINAL)
            loop = threading.Thread(target=work)
            loop.start()
            while not blocked._look_at(loop.native_id):  # until it is blocked
                assert loop.is_alive()
            exchange.end_again()
            server.sendall(b"!")
            loop.join(GIVE_UP_S)
        assert got == [b"!"]

    def test_pairs_pipes_and_listeners_are_left_alone(self, listener):
        """What is no connection to a server is not touched, though a thread waits for it."""
        client, server = connected(listener)
        one, other = socket.socketpair()
        reading, writing = os.pipe()
        with client, server, one, other:
            watched = [one, listener, reading, client]
            Running(lambda: select.select(watched, [], [])).aborted()
            other.send(b"x")
            assert one.recv(1) == b"x"
            os.write(writing, b"x")
            assert os.read(reading, 1) == b"x"
            further, accepted = connected(listener)
            further.close()
            accepted.close()
        os.close(reading)
        os.close(writing)

    def test_neighbours_are_not_harmed(self, listener):
        """Threads that open and close descriptors all the while lose none of theirs to calls that end beside them."""
        over, harmed = threading.Event(), []
        threads = [threading.Thread(target=neighbour, args=(seed, over, harmed)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for number in range(60):
            client = socket.socket()
            if number % 2:  # or it is older than its call, and unwatched
                Running(lambda: client.connect(listener.getsockname())).ended()  # noqa: B023
            else:
                client.connect(listener.getsockname())
            with client, listener.accept()[0]:
                Running(lambda: client.recv(1)).aborted()  # noqa: B023
        over.set()
        for thread in threads:
            thread.join(GIVE_UP_S)
        assert harmed == []


def neighbour(seed: int, over: threading.Event, harmed: list[str]) -> None:
    """Opens and closes connections, and notes each that somebody else has ended."""
    dice = random.Random(seed)
    while not over.is_set():
        pairs = [socket.socketpair() for _ in range(dice.randrange(1, 5))]
        with socket.create_server(("127.0.0.1", 0)) as own:
            pairs.append(connected(own))
        for one, other in pairs:
            with one, other:
                try:
                    one.sendall(b"x")
                    if other.recv(1) != b"x":
                        harmed.append("an end")
                except OSError as exc:
                    harmed.append(errno.errorcode[exc.errno or 0])


def test_a_thread_that_does_not_come_back_is_told_of_once(monkeypatch):
    """A call that outlives its end is named in one warning, by client and method."""
    monkeypatch.setattr(watchdog, "_WARN_AFTER_S", 0.02)
    monkeypatch.setattr(watchdog, "_watchdog", watchdog._Watchdog())
    gate, warned, texts = threading.Event(), threading.Event(), []

    class Deaf:
        pass

    handler = logging.Handler()
    handler.emit = lambda record: (texts.append(record.getMessage()), warned.set())  # type: ignore[assignment]
    logging.getLogger(watchdog.__name__).addHandler(handler)
    try:
        for _ in range(2):
            running = Running(lambda: gate.wait(GIVE_UP_S))
            running.exchange.client, running.exchange.method = Deaf(), "ask"
            running.exchange.abort("cancelled")
            assert warned.wait(GIVE_UP_S)
    finally:
        logging.getLogger(watchdog.__name__).removeHandler(handler)
        gate.set()
    assert len(texts) == 1
    assert texts[0].startswith("Deaf.ask goes on although its call has ended (cancelled)")


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


def test_one_that_never_comes_back_is_looked_at_ever_more_seldom(monkeypatch):
    """A thread that nothing ends costs some hundred looks in its first minute, and one a second after that."""
    now = [1000.0]
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(watchdog._Watchdog, "_wake", lambda self: None)
    looks: list[float] = []

    class Stuck:
        ended, aborted, client, method = None, "deadline", None, "ask"

        def end_again(self) -> None:
            looks.append(now[0])

    watching = watchdog._Watchdog()
    watching.chase(Stuck())
    while now[0] < 1120.0:
        wait_s = watching._look_at_chased()
        assert wait_s is not None
        now[0] += max(wait_s, 0.001)
    assert looks[0] <= 1000.01
    assert len([look for look in looks if look < 1000.1]) >= 10
    assert len([look for look in looks if look < 1060.0]) < 200
    assert len([look for look in looks if look >= 1060.0]) <= 61
