"""Exchange: keeps what the wire saw, and knows which code belongs to it."""

from __future__ import annotations

import threading

import requests
from support.serving import Exchanged

from deepseek_client.wire.exchange import Exchange, current


def test_it_knows_when_it_ended():
    """An exchange has no end while its method runs, and has one after it, also when the method raised."""
    ends: list[float | None] = []
    exchange = Exchanged(lambda: ends.append(exchange.ended))
    exchange()
    assert ends == [None]
    assert exchange.ended is not None
    assert Exchanged(lambda: 1 // 0)().ended is not None


def test_code_inside_finds_its_exchange():
    """current() is the exchange inside the method, also nested, and None before and after."""
    seen: list[Exchange | None] = []
    inner = Exchanged(lambda: seen.append(current()))

    def look() -> None:
        seen.append(current())
        inner()
        seen.append(current())

    outer = Exchanged(look)
    assert current() is None
    outer()
    assert current() is None
    assert seen == [outer, inner, outer]


def test_an_unseen_exchange_is_invisible():
    """With is_seen=False the wire finds no exchange, not even an outer one."""
    seen: list[Exchange | None] = []
    inner = Exchanged(lambda: seen.append(current()), is_seen=False)
    Exchanged(inner)()
    assert seen == [None]
    assert inner.ended is not None


def test_other_threads_do_not_see_it():
    """A thread that the method starts is not part of the exchange."""
    seen: list[Exchange | None] = []

    def start() -> None:
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()

    Exchanged(start)()
    assert seen == [None]


def test_only_the_last_request_counts():
    """A further request forgets what was known of the one before."""
    exchange = Exchange()
    exchange.begin_request("/one")
    exchange.response, exchange.error, exchange.body = requests.Response(), OSError(), b"x"
    exchange.begin_request("/two")
    assert (exchange.requests, exchange.path) == (2, "/two")
    assert (exchange.status, exchange.response, exchange.error, exchange.body) == (None, None, None, None)


def test_late_is_what_ended_at_the_deadline_or_after():
    """An exchange is late when its method ended at its deadline or later; never without a deadline."""
    exchange = Exchange(deadline=100.0)
    for exchange.ended, is_late in ((99.9, False), (100.0, True), (None, False)):
        assert exchange.is_late() is is_late
    exchange.deadline = None
    exchange.ended = 1e9
    assert not exchange.is_late()
