import asyncio
import contextvars

import pytest
import requests
from support.patience import GIVE_UP_S
from support.serving import exchanged, reply

from deepseek_client import WorkerPool, request_id


@pytest.fixture(autouse=True)
def outside():
    """No test leaves its id to the next one."""
    token = request_id._current.set(None)
    yield
    request_id._current.reset(token)


def test_there_is_none_outside_of_a_request():
    """Code that belongs to no request has no id."""
    assert request_id.current() is None


@pytest.mark.parametrize("given", ["a", "X" * 128, "0af7651916cd43dd-8448.eb21_1:c8"])
def test_the_callers_id_is_kept(given):
    """An id of 1 to 128 plain characters is taken as it is."""
    assert request_id.accept(given) == given
    assert request_id.current() == given


@pytest.mark.parametrize(
    "given", [None, "", "X" * 129, "a b", "a\nb", "a\r\nSet-Cookie: x", "a\n", "标识", "a[0]", '"a"'],
    ids=["none", "empty", "long", "blank", "newline", "header", "newline-at-end", "chinese", "bracket", "quote"],
)  # fmt: skip
def test_an_id_that_could_forge_a_line_is_replaced(given):
    """Anything else gets a new id, each time another."""
    first, second = request_id.accept(given), request_id.accept(given)
    assert first != second
    assert first.isalnum()
    assert len(first) == 32


def test_it_reaches_the_thread_of_a_call():
    """A call on the pool has the id of the request that makes it, and not that of another one."""
    pool = WorkerPool(workers=2, queue_limit=0)

    async def ask(given):
        request_id.accept(given)
        return await pool.run(request_id.current)

    async def both():
        return await asyncio.gather(ask("first"), ask("second"))

    assert asyncio.run(both()) == ["first", "second"]
    pool.close()


def test_it_reaches_the_api(serve):
    """A request of an exchange carries the id; one without an id, or with a header of the client's own, does not."""
    server = serve(reply)
    sent = []
    for given, own in [("ours", {}), (None, {}), ("ours", {"X-Request-ID": "of the client"})]:
        context = contextvars.copy_context()
        if given:
            context.run(request_id.accept, given)
        context.run(exchanged, requests.get, server.url, headers=own, timeout=GIVE_UP_S)
        sent.append(server.requests[-1][1].get("X-Request-ID"))
    assert sent == ["ours", None, "of the client"]


def test_other_code_sends_none(serve):
    """Outside of a call requests are as they were, also within a request."""
    server = serve(reply)
    request_id.accept("ours")
    requests.get(server.url, timeout=GIVE_UP_S)
    assert "X-Request-ID" not in server.requests[-1][1]
