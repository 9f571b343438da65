"""call_options: whom they reach, and how long."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from deepseek_client import ConfigError, InvalidRequest, Settings, WorkerPool, call_options
from deepseek_client.calls.caller import Caller, deadline_in
from deepseek_client.calls.options import CallOptions, current_options, set_request


def test_an_inner_block_comes_before_an_outer_one():
    """What a block does not name stays as it is around the block, and each block's end restores that."""
    assert current_options() == CallOptions()
    with call_options(deadline_s=30.0):
        with call_options(engine="threads"):
            assert current_options() == CallOptions(30.0, "threads")
            with call_options(deadline_s=0.0):
                assert current_options() == CallOptions(0.0, "threads")
        assert current_options() == CallOptions(30.0)
    assert current_options() == CallOptions()


def test_a_block_that_fails_is_left_too():
    """The options end with their block, also when it raises."""
    with pytest.raises(LookupError), call_options(deadline_s=30.0):
        raise LookupError
    assert current_options() == CallOptions()


def test_the_deadline_of_a_call(monkeypatch):
    """A call that begins now is over after LLM_DEADLINE_S, or after what the block around it says, zero included."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    caller = Caller(None, Settings(deadline_s=7.0))

    def deadline() -> float:
        return caller.call("chat", (), {}).deadline

    assert deadline() == 1007.0
    with call_options(deadline_s=30.0):
        assert deadline() == 1030.0
        with call_options(deadline_s=0.0):
            assert deadline() == 1000.0
    assert caller.call("chat", (), {}, deadline=5.0).deadline == 5.0


def test_the_deadline_of_a_call_in_a_web_request(monkeypatch):
    """What the running web request leaves of a deadline is the deadline, of a batch as of a call."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    caller = Caller(None, Settings(deadline_s=7.0))
    token = set_request(SimpleNamespace(seconds_left=lambda deadline_s: deadline_s - 3.0))
    try:
        assert caller.call("chat", (), {}).deadline == 1004.0
        with call_options(deadline_s=30.0):
            assert caller.call("chat", (), {}).deadline == 1027.0
        assert deadline_in(10.0) == 1007.0
        assert caller.call("chat", (), {}, deadline=5.0).deadline == 5.0
    finally:
        token.var.reset(token)
    assert caller.call("chat", (), {}).deadline == 1007.0


@pytest.mark.parametrize("deadline_s", [float("nan"), -1.0, float("inf"), "5", 10**9])
def test_a_deadline_that_is_no_time_is_refused(deadline_s):
    """A deadline in the past, or one that no moment can be compared with, is refused by its value."""
    refused = pytest.raises(InvalidRequest, match=f"deadline_s is {deadline_s!r}: need seconds")
    with refused, call_options(deadline_s=deadline_s):
        raise AssertionError
    assert current_options() == CallOptions()


def test_an_unknown_engine_is_refused():
    """An engine that does not exist is refused by its name, with those that do."""
    refused = pytest.raises(ConfigError, match="engine='steam': need one of threads")
    with refused, call_options(engine="steam"):
        raise AssertionError


async def test_tasks_inherit_the_options():
    """A task has the options of the block that started it, also after the block; what it sets stays its own."""
    go_on = asyncio.Event()

    async def look() -> float | None:
        await go_on.wait()
        with call_options(deadline_s=1.0):
            await asyncio.sleep(0)
        return current_options().deadline_s

    with call_options(deadline_s=30.0):
        inside = asyncio.ensure_future(look())
    outside = asyncio.ensure_future(look())
    go_on.set()
    assert await asyncio.gather(inside, outside) == [30.0, None]


async def test_a_call_inside_of_a_call_inherits_the_options():
    """The client's method, on its worker thread, sees the options of whoever made the call."""
    pool = WorkerPool(workers=1, queue_limit=0)
    caller = Caller(SimpleNamespace(look=current_options), Settings(), pool)
    with call_options(deadline_s=30.0):
        assert await caller.run(caller.call("look", (), {})) == CallOptions(30.0)
    pool.close()
