"""Ten times as many calls as there is room for: some are served in time, the rest is told when to come again."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from support.blocking import counts, leaving_soon, until
from support.clients import build
from support.faults import counted, meet
from support.patience import GIVE_UP_S

from deepseek_client import DeadlineExceeded, DeepSeekError, Settings, WorkerPool, call_options, events
from deepseek_client.calls.call import Attempt, Call
from deepseek_client.engines.shared import default_pool
from deepseek_client.engines.threads import Job
from deepseek_client.events import CallFinished
from deepseek_client.sandbox import RunningSandbox, running
from deepseek_client.wire.exchange import Exchange
from webapp.app import create_app

pytestmark = pytest.mark.usefixtures("each_engine")

WORKERS, QUEUE_LIMIT = 2, 4
ROOM = WORKERS + QUEUE_LIMIT
OF_A_CALL = (Job, Call, Attempt, Exchange, DeepSeekError)


@pytest.fixture(autouse=True)
def quiet(caplog):
    """A log that pytest keeps would keep each call's error too."""
    caplog.set_level(logging.CRITICAL)
    caplog.set_level(logging.CRITICAL, "deepseek_client")  # which the application would set to INFO


@pytest.fixture
def pool(monkeypatch) -> Iterator[WorkerPool]:
    """The pool of the applications of one test, of which no call was measured yet."""
    leaving_soon(monkeypatch)
    yield default_pool(WORKERS, QUEUE_LIMIT)
    default_pool(WORKERS, QUEUE_LIMIT).close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Request threads, as a web server has them."""
    with ThreadPoolExecutor(10 * ROOM) as executor:
        yield executor


@pytest.fixture
def api(threads) -> Iterator[RunningSandbox]:
    """It ends before the threads do: none of them waits for it any more."""
    with running() as sandbox:
        yield sandbox


@pytest.fixture
def settings(api, pool) -> Settings:
    return Settings(api_key="sk-test", base_url=api.url, max_workers=WORKERS, queue_limit=QUEUE_LIMIT)


@pytest.fixture
def ended() -> Iterator[list[CallFinished]]:
    """The calls that ended, as the client reports them."""
    noted: list[CallFinished] = []

    def note(event: Any) -> None:
        if isinstance(event, CallFinished):
            noted.append(event)

    events.subscribe(note)
    yield noted
    events.unsubscribe(note)


def post(app: Flask, path: str = "chat") -> Any:
    return app.test_client().post(
        f"/api/llm/{path}", json={"prompt": "x", "requests": [{"prompt": "x"}] * ROOM}
    )


def at_once(threads: ThreadPoolExecutor, calls: int, ask: Callable[[], Any]) -> list[Any]:
    """What that many threads get that all ask at the same moment."""
    start = threading.Barrier(calls, timeout=GIVE_UP_S)
    asked: list[Future[Any]] = [threads.submit(lambda: (start.wait(), ask())[1]) for _ in range(calls)]
    return [one.result(2 * GIVE_UP_S) for one in asked]


def wait_for(pool: WorkerPool, busy: int, queued: int) -> None:
    asyncio.run(until(lambda: counts(pool) == (busy, queued)))


def kept() -> Counter[str]:
    """The objects of calls that are in memory, by class."""
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if issubclass(type(thing), OF_A_CALL))


def leaves_nothing(api: RunningSandbox, pool: WorkerPool) -> None:
    """Each thread of the pool is idle, each slot and each place of the queue is free."""
    asyncio.run(meet(pool))
    assert (counts(pool), len(pool._jobs), pool._executor._work_queue.qsize()) == ((0, 0), 0, 0)
    api.wait_until(lambda stats: stats["in_flight"] == 0)


def test_ten_times_the_room(api, pool, settings, threads):
    """What finds room ends by its deadline at the latest; the rest gets 503 with Retry-After at once, unsent."""
    api.script([{"fault": "hang", "times": 10 * ROOM}])
    app = create_app(replace(settings, deadline_s=2.5))
    probes = app.test_client()
    assert probes.get("/ready").status_code == 200
    before = counted(probes)
    accepted = [threads.submit(post, app) for _ in range(ROOM)]
    wait_for(pool, WORKERS, QUEUE_LIMIT)
    api.wait_until(lambda stats: stats["in_flight"] == WORKERS)
    for answer in at_once(threads, 9 * ROOM, lambda: post(app)):
        assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "1")
        assert answer.get_json().keys() == {"error", "code", "text"}
        assert (answer.get_json()["code"], answer.get_json()["text"]) == ("overloaded", "")
    assert api.stats()["requests"] == WORKERS
    assert probes.get("/health").status_code == 200
    ready = probes.get("/ready")
    assert (ready.status_code, ready.get_json()["reason"]) == (503, "the pool is full")

    answers = [call.result(GIVE_UP_S) for call in accepted]
    told = [(answer.status_code, answer.get_json()["code"]) for answer in answers]
    assert told == [(504, "deadline_exceeded")] * ROOM
    assert pool.stats()["rejected"] == 9 * ROOM
    errors = {key[1]: count for key, count in (counted(probes) - before).items() if "errors" in key[0]}
    assert errors == {"overloaded": 9 * ROOM, "deadline_exceeded": ROOM}
    leaves_nothing(api, pool)
    assert probes.get("/ready").status_code == 200


def test_what_waited_too_long_is_not_sent(api, pool, settings, threads):
    """A call whose deadline passes in the queue ends then, gives its place back, and is never sent."""
    api.script([{"fault": "hang", "times": WORKERS}])
    slow, quick = (create_app(replace(settings, deadline_s=deadline_s)) for deadline_s in (2.0, 0.3))
    running_calls = [threads.submit(post, slow) for _ in range(WORKERS)]
    wait_for(pool, WORKERS, 0)
    for _ in range(2):
        codes = {answer.get_json()["code"] for answer in at_once(threads, QUEUE_LIMIT, lambda: post(quick))}
        assert (codes, counts(pool)) == ({"deadline_exceeded"}, (WORKERS, 0))
    assert {call.result(GIVE_UP_S).get_json()["code"] for call in running_calls} == {"deadline_exceeded"}
    leaves_nothing(api, pool)
    assert api.stats()["requests"] == WORKERS


def test_what_cannot_be_served_in_time_is_refused_on_arrival(api, pool, settings, threads):
    """With room in the queue, a call that the pace of the last ones leaves no time is refused at once, unsent."""
    patient, hasty = (create_app(replace(settings, deadline_s=deadline_s)) for deadline_s in (2.0, 0.4))
    api.script([{"fault": "ok", "latency_ms": 150, "times": 2 * ROOM}, {"fault": "hang", "times": WORKERS}])
    assert [post(patient, "batch").get_json()["successful"] for _ in range(2)] == [ROOM] * 2
    waiting = [threads.submit(post, patient) for _ in range(WORKERS + 3)]
    wait_for(pool, WORKERS, 3)
    api.wait_until(lambda stats: stats["in_flight"] == WORKERS)
    answer = post(hasty)  # behind four calls of 150 ms or more for two workers, and as long itself
    assert (answer.status_code, answer.get_json()["code"]) == (503, "overloaded")
    assert int(answer.headers["Retry-After"]) >= 1
    assert (counts(pool), pool.stats()["rejected"]) == ((WORKERS, 3), 1)
    assert api.stats()["requests"] == 2 * ROOM + WORKERS
    for call in waiting:
        call.result(GIVE_UP_S)
    leaves_nothing(api, pool)


@pytest.mark.parametrize(
    ("queue_limit", "deadline_s"), [(4, 5.0), (100, 0.4)], ids=["the_queue_is_short", "the_deadline_is_short"]
)
def test_an_overload_that_lasts(api, settings, threads, ended, queue_limit, deadline_s):
    """Wave after wave each call has one outcome, only what was begun in time is sent, and nothing of it is kept."""
    app = create_app(replace(settings, queue_limit=queue_limit, deadline_s=deadline_s))
    pool = default_pool(WORKERS, queue_limit)
    before = kept()
    for wave in (1, 2, 3):
        api.script([{"fault": "ok", "latency_ms": 30, "times": 10 * ROOM}])
        answers = at_once(threads, 10 * ROOM, lambda: post(app))
        leaves_nothing(api, pool)
        told = Counter((answer.status_code, answer.get_json().get("code")) for answer in answers)
        served, late, refused = told[200, None], told[504, "deadline_exceeded"], told[503, "overloaded"]
        assert served + late + refused == 10 * ROOM
        assert all(int(one.headers["Retry-After"]) >= 1 for one in answers if one.status_code == 503)
        assert len(ended) == 10 * ROOM * wave
        asyncio.run(
            until(lambda: kept() <= before)
        )  # the loop's thread may be about to let go of the last one
    outcomes = Counter(call.error for call in ended)
    assert outcomes["overloaded"] == pool.stats()["rejected"]
    assert ROOM <= outcomes[None] <= api.stats()["requests"] <= sum(call.attempts for call in ended)


def test_batches_at_once(api, pool, settings, threads):
    """Batches that together want ten times the room are answered, each prompt by a text or by overloaded."""
    api.script([{"fault": "ok", "latency_ms": 30, "times": 10 * ROOM}])
    app = create_app(settings)
    answers = at_once(threads, 10, lambda: post(app, "batch"))
    assert [(answer.status_code, answer.get_json()["total"]) for answer in answers] == [(200, ROOM)] * 10
    codes = Counter(result.get("code") for answer in answers for result in answer.get_json()["results"])
    assert codes == {None: codes[None], "overloaded": codes["overloaded"]}
    assert codes["overloaded"] <= pool.stats()["rejected"]
    assert (codes[None] >= ROOM, codes.total()) == (True, 10 * ROOM)
    leaves_nothing(api, pool)
    assert api.stats()["requests"] == codes[None]


# On the loop, nothing would go on while it stands still.
@pytest.mark.parametrize("each_engine", ["threads"], indirect=True)
async def test_a_call_that_is_late_when_its_turn_comes_is_not_begun(api, settings, ended):
    """A queued call whose time passes while its event loop is too busy to notice is not begun by the worker."""
    pool = WorkerPool(workers=1, queue_limit=1)
    api.script([{"fault": "ok", "latency_ms": 1500}])
    client = build(settings, pool=pool)
    first = asyncio.ensure_future(client.chat_async("x"))
    await until(lambda: api.stats()["in_flight"] == 1)
    with call_options(deadline_s=0.75):
        second = asyncio.ensure_future(client.chat_async("x"))
    await until(lambda: counts(pool) == (1, 1))
    # Here the loop stands still: it learns of nothing before the thread has dealt with both.
    api.wait_until(lambda stats: stats["in_flight"] == 0)
    pool._changed.acquire()
    assert pool._changed.wait_for(lambda: not pool._jobs, GIVE_UP_S)
    pool._changed.release()
    assert "「x」" in (await first)["text"]
    with pytest.raises(DeadlineExceeded):
        await second
    assert {(call.error, call.attempts) for call in ended} == {(None, 1), ("deadline_exceeded", 0)}
    assert api.stats()["requests"] == 1
    pool.close()
