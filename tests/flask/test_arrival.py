"""Requests that have waited before they came to the application, and those whose caller has left."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from flask import Flask
from support.blocking import counts, leaving_soon, until
from support.patience import GIVE_UP_S
from support.sockets import tcp_pair

from deepseek_client import (
    AsyncFacade,
    CallerLeft,
    DeadlineExceeded,
    Overloaded,
    Settings,
    WorkerPool,
    call_options,
)
from deepseek_client.calls.options import current_request
from deepseek_client.flask import DeepSeek, arrival


class Client:
    """Counts its calls; one whose prompt is "wait" takes until it is let go."""

    def __init__(self):
        self.prompts = []
        self.go_on = threading.Event()

    def chat(self, prompt):
        self.prompts.append(prompt)
        assert prompt != "wait" or self.go_on.wait(GIVE_UP_S)
        return {"text": prompt}

    def fail(self, prompt):
        """Fails at once."""
        self.prompts.append(prompt)
        raise ValueError("no")


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def served(client, tmp_path, monkeypatch):
    """Asks a path of an application over the client, on a connection that has waited for so long."""
    monkeypatch.chdir(tmp_path)

    def ask(path="/talk", queued_s=0.0, has_left=False, settings=None, **switches):
        app = Flask("theirs")
        app.testing = True
        llm = DeepSeek(client=client, errors="raise", **switches)
        llm.init_app(app, settings=settings or Settings(api_key="sk-test", deadline_s=10.0))
        views = {
            "/talk": lambda: llm.wait(llm.client.chat_async("x")),
            "/sync": lambda: llm.client.chat("x"),
            "/batch": lambda: {"all": llm.client.chat_many(["x", "y"], deadline_s=10.0)},
            "/page": lambda: "a page",
        }
        for route, view in views.items():
            app.add_url_rule(route, endpoint=route, view_func=view)

        @app.get("/async")
        async def talk():
            return await llm.client.chat_async("x")

        @app.get("/patient")
        def patient():
            with call_options(deadline_s=30.0):
                return llm.wait(llm.client.chat_async("x"))

        monkeypatch.setattr(arrival.tcp, "seconds_since_received", lambda _: queued_s)
        with tcp_pair() as (server, caller):
            if has_left:
                caller.close()
                server.recv(1)
            return app.test_client().get(path, environ_overrides={"gunicorn.socket": server})

    return ask


WAYS = ["/talk", "/async", "/sync", "/batch"]


@pytest.mark.parametrize("path", WAYS)
def test_request_that_has_waited_too_long(served, client, path):
    """A request that has waited for longer than it may is a 503 with Retry-After before any call, whatever its view."""
    answer = served(path, queued_s=11.0)
    assert (answer.status_code, answer.headers["Retry-After"], answer.json["code"]) == (
        503,
        "1",
        "overloaded",
    )
    assert client.prompts == []


@pytest.mark.parametrize("path", WAYS)
def test_request_that_has_waited(served, client, path):
    """A request that has waited for less than a call leaves it makes its call."""
    assert served(path, queued_s=4.0).status_code == 200
    assert client.prompts[0] == "x"


def test_request_without_a_call(served):
    """A request that makes no call is answered however long it has waited, and whoever has left."""
    assert served("/page", queued_s=100.0).text == "a page"
    assert served("/page", has_left=True).text == "a page"


def test_view_that_gives_its_calls_more(served, client):
    """What a view's own longer deadline has left counts for whether the call is made."""
    assert served("/patient", queued_s=11.0).status_code == 200
    assert served("/patient", queued_s=31.0).status_code == 503
    assert client.prompts == ["x"]


@pytest.mark.parametrize("path", WAYS)
def test_caller_that_has_left(served, client, path):
    """A request whose caller has closed the connection makes no call."""
    answer = served(path, has_left=True)
    assert (answer.status_code, answer.json["code"]) == (499, "caller_left")
    assert client.prompts == []


@pytest.mark.parametrize("path", WAYS[:3])
def test_rollback(served, client, path):
    """USE_ASYNC_DEEPSEEK=0 makes each call, as the application did without this library."""
    legacy = Settings(api_key="sk-test", use_async=False, deadline_s=10.0)
    assert served(path, queued_s=100.0, settings=legacy).status_code == 200
    assert served(path, has_left=True, settings=legacy).status_code == 200


def test_switch(served):
    """Without the switch stale requests make their calls."""
    assert served(queued_s=100.0, refuse_stale_requests=False).status_code == 200
    assert served(has_left=True, refuse_stale_requests=False).status_code == 200


def test_metric(served):
    """The wait is a metric where it is known."""
    before = _waits(served("/metrics", queued_s=None).text)
    served("/page", queued_s=3.0)
    served("/page", queued_s=None)
    after = _waits(served("/metrics", queued_s=None).text)
    assert (after[0] - before[0], after[1] - before[1]) == (1, 3.0)


def _waits(text):
    values = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("http_queued_seconds_")
    )
    return float(values["http_queued_seconds_count"]), float(values["http_queued_seconds_sum"])


@pytest.fixture
def arrivals():
    return arrival._Arrivals(limit_s=10.0)


def test_deadlines(arrivals):
    """The wait is taken from a deadline of the limit or more; a shorter one is cut where the limit comes before it."""
    request = arrival._Arrival(arrivals, None, 4.0)
    assert [request.seconds_left(deadline_s) for deadline_s in (10.0, 30.0, 5.0, 8.0, 0.0)] == [
        6,
        26,
        5,
        6,
        0,
    ]


class Ended:
    """A call that has ended."""

    def __init__(self, ran_s, attempts=1):
        self.ran_s, self.attempts = ran_s, attempts


def test_what_a_call_needs(arrivals):
    """It is the mean of the last calls that ran, half of the limit while there are none, and never more than that."""
    assert arrivals.needed_s() == 5.0
    arrivals.note(Ended(0.0, attempts=0), None)
    assert arrivals.needed_s() == 5.0
    for ran_s in (1.0, 3.0):
        arrivals.note(Ended(ran_s), None)
    assert arrivals.needed_s() == 2.0
    for _ in range(10):
        arrivals.note(Ended(9.9), DeadlineExceeded("over"))
    assert arrivals.needed_s() == 5.0


def test_calls_that_fail_quickly(arrivals, client):
    """However many calls fail at once, the need is that of the calls that were answered."""
    failing = AsyncFacade(SimpleNamespace(chat=client.fail), settings=Settings())
    arrivals.note(Ended(2.0), None)
    arrival.set_request(arrival._Arrival(arrivals, None, 0.0))
    try:
        for _ in range(10):
            with pytest.raises(ValueError, match="no"):
                failing.chat("x")
    finally:
        arrival.set_request(None)
    assert len(client.prompts) == 10
    assert arrivals.needed_s() == 2.0


async def test_caller_that_leaves_while_the_call_waits_for_a_thread(arrivals, client, monkeypatch):
    """A call that waits in the pool's queue is not made when its caller has left meanwhile."""
    leaving_soon(monkeypatch)
    pool = WorkerPool(workers=1, queue_limit=5)
    facade = AsyncFacade(client, pool=pool, settings=Settings())
    first = asyncio.ensure_future(facade.chat_async("wait"))
    await until(lambda: counts(pool) == (1, 0))
    with tcp_pair() as (server, caller):
        arrival.set_request(arrival._Arrival(arrivals, server, 0.0))
        second = asyncio.ensure_future(facade.chat_async("x"))
        await until(lambda: counts(pool) == (1, 1))
        caller.close()
        server.recv(1)
        client.go_on.set()
        with pytest.raises(CallerLeft):
            await second
    assert await first == {"text": "wait"}
    assert client.prompts == ["wait"]
    pool.close()


async def test_work_that_a_request_has_left_behind(arrivals, client):
    """After the end of its request nobody asks whether its caller is there, or how long it had waited."""
    pool = WorkerPool(workers=1, queue_limit=5)
    facade = AsyncFacade(client, pool=pool, settings=Settings())
    with tcp_pair() as (server, caller):
        request = arrival._Arrival(arrivals, server, 100.0)
        arrival.set_request(request)
        caller.close()
        with pytest.raises(CallerLeft):
            await facade.chat_async("x")
        request.end()
        assert await facade.chat_async("x") == {"text": "x"}
    pool.close()


def test_requests_inside_a_request(served, client):
    """A request that a view makes of an application in the same process leaves the view's own as it was."""
    app, inner = Flask("outer"), Flask("inner")
    llm = DeepSeek(client=client)
    for each in (app, inner):
        llm.init_app(each, settings=Settings(api_key="sk-test"))
    seen = []

    @app.get("/")
    def view():
        seen.append(current_request())
        inner.test_client().get("/", environ_overrides={"gunicorn.socket": server})
        seen.append(current_request())
        return ""

    with tcp_pair() as (server, _):
        app.test_client().get("/", environ_overrides={"gunicorn.socket": server})
    assert seen[0] is seen[1] is not None
    assert current_request() is None


def test_sentence_of_the_refusal(arrivals):
    """The refusal says how long the request had waited."""
    request = arrival._Arrival(arrivals, None, 9.0)
    call = Ended(0.0)
    call.began, call.deadline = 0.0, request.seconds_left(10.0)
    with pytest.raises(Overloaded, match=r"had waited 9\.0 s for this server"):
        request.admit(call)
