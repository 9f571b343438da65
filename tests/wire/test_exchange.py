"""Exchange: keeps what a method did, and knows which code belongs to it."""

from __future__ import annotations

import threading

import pytest

from deepseek_client.wire.exchange import Exchange, current


def kept(exchange: Exchange) -> None:
    """A judge that lets the exchange speak for itself."""


def test_the_result_is_kept():
    """An exchange keeps what its method returned, and when it began and ended."""
    exchange = Exchange("double", lambda: 42, kept)
    exchange()
    assert exchange.result == 42
    assert exchange.raised is None
    assert exchange.began is not None
    assert exchange.ended is not None
    assert exchange.began <= exchange.ended


def test_an_exception_is_kept_and_not_raised():
    """An exchange does not raise what its method raised: that is the judge's to decide."""

    def fail() -> None:
        raise LookupError("x")

    exchange = Exchange("fail", fail, kept)
    exchange()
    assert isinstance(exchange.raised, LookupError)
    assert exchange.result is None


def test_the_judge_decides():
    """What the judge returns or raises is the outcome; it sees the ended exchange and runs in its thread."""

    def judge(exchange: Exchange) -> str:
        assert exchange.ended is not None
        if exchange.raised is not None:
            raise exchange.raised
        return f"{exchange.result} in {threading.current_thread().name}"

    own = threading.current_thread().name
    assert Exchange("x", lambda: "done", judge)() == f"done in {own}"
    with pytest.raises(ZeroDivisionError):
        Exchange("x", lambda: 1 // 0, judge)()


def test_code_inside_finds_its_exchange():
    """current() is the exchange inside the method, also nested, and None before and after."""
    seen: list[Exchange | None] = []
    inner = Exchange("inner", lambda: seen.append(current()), kept)

    def look() -> None:
        seen.append(current())
        inner()
        seen.append(current())

    outer = Exchange("outer", look, kept)
    assert current() is None
    outer()
    assert current() is None
    assert seen == [outer, inner, outer]


def test_an_unrecorded_exchange_is_invisible():
    """With record=False the outcome is kept, but the transport finds no exchange, not even an outer one."""
    seen: list[Exchange | None] = []
    inner = Exchange("inner", lambda: seen.append(current()), kept, record=False)
    Exchange("outer", inner, kept)()
    assert seen == [None]
    assert inner.ended is not None


def test_other_threads_do_not_see_it():
    """A thread that the method starts is not part of the exchange."""
    seen: list[Exchange | None] = []

    def start() -> None:
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()

    Exchange("start", start, kept)()
    assert seen == [None]


def test_only_the_last_request_counts():
    """A further request forgets what was known of the one before."""
    exchange = Exchange("x", int, kept)
    exchange.begin_request("/one")
    exchange.status, exchange.error, exchange.body = 500, OSError(), b"x"
    exchange.retry_after = "3"
    exchange.begin_request("/two")
    assert (exchange.requests, exchange.path) == (2, "/two")
    assert (exchange.status, exchange.error, exchange.body, exchange.retry_after) == (None, None, None, None)
