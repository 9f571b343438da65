"""end_calls: it reaches a call wherever it runs or waits."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import freezegun
import pytest
from support.blocking import Blocked, Deaf, entered, in_child, until
from support.clients import build
from support.patience import GIVE_UP_S

from deepseek_client import AsyncDeepSeekClient, PoolClosed, Settings, WorkerPool, call_options
from deepseek_client.calls import call as call_module
from deepseek_client.calls import ending
from deepseek_client.calls.call import calls_in_flight
from deepseek_client.calls.caller import Caller
from deepseek_client.calls.ending import end_calls, has_calls
from deepseek_client.events import CallFinished, subscribe, unsubscribe

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("alone")


def caller(client: object, pool: WorkerPool | None = None, *, use_async: bool = True) -> Caller:
    return Caller(client, Settings(use_async=use_async), pool)


async def test_calls_on_every_pool_are_ended():
    """Calls on one pool and on another, running and queued, end with PoolClosed."""
    pools = [WorkerPool(workers=1, queue_limit=1) for _ in range(2)]
    deaf = [Deaf() for _ in pools]
    calls = [asyncio.ensure_future(pool.run(one)) for pool, one in zip(pools, deaf, strict=True)]
    await entered(*deaf)
    calls += [asyncio.ensure_future(pool.run(int)) for pool in pools]
    await asyncio.sleep(0)
    assert has_calls()
    end_calls()
    end_calls()
    assert has_calls()  # threads that nothing reaches, though nobody waits for them
    for one in deaf:
        one.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PoolClosed] * 4
    await until(lambda: not any(pool.stats()["busy"] for pool in pools))
    assert not has_calls()


@pytest.mark.parametrize("use_async", [True, False], ids=["in-a-slot", "unlimited"])
def test_calls_in_own_threads_are_ended(sandbox, settings, use_async):
    """A blocking call that hangs on the network ends with PoolClosed, whether it has a slot of the pool or none."""
    sandbox.script([{"fault": "hang"}])
    client = AsyncDeepSeekClient(settings=replace(settings, use_async=use_async), errors="raise")
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.chat, "hi")
        sandbox.wait_until(lambda stats: stats["in_flight"] == 1)
        assert len(calls_in_flight()) == 1
        end_calls()
        with pytest.raises(PoolClosed):
            call.result(GIVE_UP_S)
    assert not calls_in_flight()
    assert not ending._unlimited


@pytest.mark.parametrize("use_async", [True, False], ids=["in-a-slot", "unlimited"])
async def test_what_an_ended_method_returns_is_no_answer(use_async):
    """A client that swallows the end of its call and returns a blank does not hide it: its caller gets PoolClosed."""
    blocked = Deaf()
    ours = caller(SimpleNamespace(chat=blocked), use_async=use_async)
    call = asyncio.ensure_future(asyncio.to_thread(ours.run_here, ours.call("chat", (), {})))
    await entered(blocked)
    end_calls()
    blocked.gate.set()
    with pytest.raises(PoolClosed):
        await call


async def test_a_wait_between_attempts_is_ended():
    """A back-off of an hour ends with PoolClosed, asked for from any thread, and nothing is left behind."""
    waiting = asyncio.ensure_future(ending.back_off(3_600.0, WorkerPool(1, 0)))
    await until(lambda: bool(ending._sleepers))
    await asyncio.to_thread(end_calls)
    with pytest.raises(PoolClosed):
        await waiting
    assert not ending._sleepers


@pytest.mark.parametrize("engine", ["threads", "loop"])
async def test_a_wait_ends_with_its_pool(sandbox, engine):
    """A call that waits to be tried again ends with PoolClosed when its pool is closed: that may be half an hour."""
    sandbox.script([{"fault": "status", "status": 429, "headers": {"Retry-After": "1800"}}])
    pool = WorkerPool(workers=1, queue_limit=0)
    settings = Settings(api_key="sk-test", base_url=sandbox.url, deadline_s=3600)
    with call_options(engine=engine):
        call = asyncio.ensure_future(build(settings, pool=pool).chat_async("hi"))
    await until(lambda: bool(pool.at_close))
    await asyncio.to_thread(pool.close)
    with pytest.raises(PoolClosed):
        await asyncio.wait_for(call, GIVE_UP_S)
    assert not pool.at_close


async def test_no_wait_begins_after_the_end():
    """A back-off that begins when the process is about to leave ends at once."""
    end_calls()
    with pytest.raises(PoolClosed):
        await ending.back_off(3_600.0, WorkerPool(1, 0))
    assert not ending._sleepers


async def test_a_wait_ends_by_itself():
    """A back-off whose time has passed returns, and end_calls has nothing to end."""
    await ending.back_off(0.0, WorkerPool(1, 0))
    assert not ending._sleepers
    end_calls()


def test_the_wait_of_a_closed_loop_is_passed_over():
    """A back-off whose event loop was closed does not keep end_calls from ending the others."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(ending.back_off(3_600.0, WorkerPool(1, 0)))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    assert ending._sleepers
    end_calls()


@pytest.mark.parametrize("use_async", [True, False], ids=["pool", "unlimited"])
def test_no_call_begins_after_the_end(use_async):
    """A call that is made when the process is about to leave is refused, also on a pool that nobody has closed."""
    end_calls()
    called: list[str] = []
    pool = WorkerPool(workers=1, queue_limit=0)
    ours = caller(SimpleNamespace(chat=called.append), pool, use_async=use_async)
    with pytest.raises(PoolClosed):
        ours.run_here(ours.call("chat", ("hi",), {}))
    with pytest.raises(PoolClosed):
        asyncio.run(ours.run(ours.call("chat", ("hi",), {})))
    assert not called
    assert not calls_in_flight()
    pool.close()


@pytest.mark.parametrize("use_async", [True, False], ids=["in-a-slot", "unlimited"])
def test_a_call_that_begins_at_the_end_is_not_made(pool, use_async):
    """Where the end comes after the call's first look, and before its attempt, the client's method is not called."""

    class EndsCalls:
        def before_call(self) -> EndsCalls:
            end_calls()
            return self

        def before_attempt(self, attempt: object) -> None: ...

        def after_attempt(self, error: BaseException | None) -> None: ...

        def after_call(self, call: object, error: object) -> None: ...

    called: list[str] = []
    ours = caller(SimpleNamespace(chat=called.append), pool, use_async=use_async)
    ours._guards = (EndsCalls(),)
    with pytest.raises(PoolClosed):
        ours.run_here(ours.call("chat", ("hi",), {}))
    assert not called


def test_a_child_goes_on_after_its_parents_end():
    """A child that is forked from an ending process makes calls on its own pools."""
    end_calls()
    ours = caller(SimpleNamespace(chat=Blocked), use_async=False)

    def child() -> None:
        ours.run_here(ours.call("chat", (), {}))

    in_child(child)


def test_no_lock_is_needed_to_be_ended():
    """Calls that begin and end in other threads meanwhile do not disturb end_calls."""
    meeting = threading.Barrier(5, timeout=GIVE_UP_S)
    ours = caller(SimpleNamespace(chat=int), use_async=False)

    def many() -> None:
        meeting.wait()
        for _ in range(300):
            try:
                ours.run_here(ours.call("chat", (), {}))
            except PoolClosed:
                return

    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(many) for _ in range(4)]
        meeting.wait()
        end_calls()
        for call in calls:
            call.result(GIVE_UP_S)
    assert not ending._unlimited


def test_a_forked_child_has_no_calls_of_its_parent(alone):
    """A child that is forked beside a call in flight makes no call: its exit waits for none."""
    call_module._in_flight.add(object())
    try:
        in_child(lambda: None if not ending.has_calls() else pytest.fail("has a call of its parent"))
    finally:
        call_module._in_flight.clear()


async def test_a_call_that_is_cancelled_before_its_turn_is_reported(alone):
    """Each of a hundred calls that begin at once and are cancelled is reported, also those that had no turn yet."""
    ended: list[str | None] = []

    def note(event: object) -> None:
        if isinstance(event, CallFinished):
            ended.append(event.error)

    caller = Caller(SimpleNamespace(noop=lambda: None), Settings(), WorkerPool(workers=1, queue_limit=100))
    subscribe(note)
    try:
        tasks = [asyncio.ensure_future(caller.run(caller.call("noop", (), {}))) for _ in range(100)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        unsubscribe(note)
    assert len(ended) == 100


def test_a_back_off_under_a_stopped_clock_ends():
    """Where a test has stopped the clock, and the event loop's with it, a wait between two attempts still ends."""
    with freezegun.freeze_time("2027-01-15"):
        asyncio.run(ending.back_off(0.01, WorkerPool(1, 0)))


LAST_CALLS = """
import asyncio, atexit, threading
from types import SimpleNamespace
from deepseek_client import AsyncFacade, WorkerPool

facade = AsyncFacade(SimpleNamespace(noop=lambda: 42), pool=WorkerPool(1, 1))
print(asyncio.run(facade.noop_async()), flush=True)

def late(who):
    try:
        print(who, asyncio.run(facade.noop_async()), flush=True)
    except Exception as exc:
        print(who, type(exc).__name__, exc.code, flush=True)

atexit.register(late, "atexit")

def wait_for_main():
    threading.main_thread().join()
    late("thread")

threading.Thread(target=wait_for_main).start()
"""


def test_calls_after_the_main_thread_are_closing():
    """A call that begins when Python is about to end is refused as closing: it is no overload."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LAST_CALLS], env=environment, capture_output=True, text=True, timeout=GIVE_UP_S
    )
    assert done.stdout.splitlines() == ["42", "thread PoolClosed closing", "atexit PoolClosed closing"], (
        done.stderr
    )
