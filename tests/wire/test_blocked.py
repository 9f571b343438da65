"""What a thread is blocked in where Python sees nothing of it, and what is told of one that does not come back."""

from __future__ import annotations

import errno
import logging
import os
import random
import select
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from support.exchanges import FINAL, Running
from support.patience import GIVE_UP_S
from support.sockets import connected

from deepseek_client.wire import blocked, waiting, watchdog
from deepseek_client.wire.exchange import Exchange

pytestmark = pytest.mark.usefixtures("installed")

on_linux = pytest.mark.skipif(
    not blocked._targets_of, reason="the system does not tell what a thread waits in"
)


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
