"""Another vendor's client: its hung calls cost nobody else, are ended by its own `abort`, and keep no process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.blocking import Blocked, until
from support.patience import GIVE_UP_S

from deepseek_client import (
    AsyncDeepSeekClient,
    AsyncFacade,
    DeadlineExceeded,
    EndedCall,
    WorkerPool,
    asyncify,
    call_options,
)

ROOT = Path(__file__).parents[1]


async def test_hung_calls_take_no_slot_from_others(settings):
    """With every slot of a foreign client hung, a DeepSeek call, another facade's and a function's are answered."""
    hung = [Blocked() for _ in range(settings.max_workers)]
    foreign = AsyncFacade(SimpleNamespace(ask=lambda number: hung[number]()), settings=settings)
    calls = [asyncio.create_task(foreign.ask_async(number)) for number in range(len(hung))]
    await asyncio.gather(*(asyncio.to_thread(each.entered.wait, GIVE_UP_S) for each in hung))
    assert (await AsyncDeepSeekClient(settings=settings).chat_async("hi"))["text"]
    assert await AsyncFacade(SimpleNamespace(ask=lambda: 1), settings=settings).ask_async() == 1
    assert await asyncify(lambda: 2, settings=settings)() == 2
    for each in hung:
        each.gate.set()
    await asyncio.gather(*calls)


class Grpc:
    """A client whose calls wait for what no socket of Python's brings, and that can cancel them itself."""

    def __init__(self) -> None:
        self.waits: dict[int, threading.Event] = {}
        self.ended: list[EndedCall] = []

    def ask(self, prompt: str) -> str:
        self.waits[threading.get_ident()] = waited = threading.Event()
        assert waited.wait(GIVE_UP_S)
        return "cancelled"

    def cancel(self, call: EndedCall) -> None:
        self.ended.append(call)
        self.waits[call.thread_id].set()


async def test_abort_ends_what_nothing_else_reaches():
    """`abort` is told of the call and its thread, once; the call raises DeadlineExceeded and its slot is free again."""
    client, pool = Grpc(), WorkerPool(1, 0)
    facade = AsyncFacade(client, pool=pool, abort=client.cancel)
    with pytest.raises(DeadlineExceeded), call_options(deadline_s=0.3):
        await facade.ask_async("hi")
    await until(lambda: pool.stats()["busy"] == 0)
    (thread_id,) = client.waits
    assert client.ended == [EndedCall("ask", ("hi",), {}, thread_id, "deadline")]


async def test_an_abort_that_fails_is_logged(caplog):
    """What `abort` raises reaches nobody but the log."""
    blocked, told = Blocked(), threading.Event()

    def fail(call: EndedCall) -> None:
        told.set()
        raise RuntimeError("no")

    facade = AsyncFacade(SimpleNamespace(ask=blocked), pool=WorkerPool(1, 0), abort=fail)
    with pytest.raises(DeadlineExceeded), call_options(deadline_s=0.3):
        await facade.ask_async()
    assert await asyncio.to_thread(told.wait, GIVE_UP_S)
    await until(lambda: "abort of ask failed" in caplog.text)
    blocked.gate.set()


async def test_no_abort_for_a_call_that_ends():
    """A call that ends by itself is not aborted."""
    told: list[Any] = []
    facade = AsyncFacade(SimpleNamespace(ask=lambda: 1), pool=WorkerPool(1, 0), abort=told.append)
    assert await facade.ask_async() == 1
    assert told == []


STUCK = """
import asyncio, atexit, sys, threading
from types import SimpleNamespace
from deepseek_client import AsyncFacade, DeadlineExceeded, call_options

lock = threading.Lock()
lock.acquire()
facade = AsyncFacade(SimpleNamespace(ask=lock.acquire, tell=lambda: print("told", flush=True)))
atexit.register(print, "flushed", flush=True)

async def main():
    try:
        with call_options(deadline_s=0.2):
            await facade.ask_async()
    except DeadlineExceeded:
        await facade.tell_async()

asyncio.run(main())
sys.exit(3)
"""


def test_a_thread_out_of_reach_does_not_keep_the_process():
    """A script whose call hangs where nothing reaches it ends, by its own exit code, and after its own last words."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STUCK], env=environment, capture_output=True, text=True, timeout=3 * GIVE_UP_S
    )
    assert (done.returncode, done.stdout.split()) == (3, ["told", "flushed"]), done.stderr


IN_FLIGHT = """
import asyncio, threading, time
from types import SimpleNamespace
from deepseek_client import WorkerPool

pool, began, leaving = WorkerPool(1, 1), threading.Event(), threading.Event()
threading._register_atexit(leaving.set)  # it is the last, and called first

def work():
    began.set()
    leaving.wait()
    time.sleep(0.2)  # an exit that does not wait is over by then
    print("done", flush=True)

def serve():
    asyncio.run(pool.run(work))

threading.Thread(target=serve, daemon=True).start()
began.wait()
"""


def test_a_call_in_flight_is_waited_for_at_the_exit():
    """A call that somebody still waits for ends before its process does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", IN_FLIGHT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=3 * GIVE_UP_S,
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize(
    "make", [AsyncFacade, lambda client: AsyncDeepSeekClient(client=client)], ids=["any", "ours"]
)
def test_a_double_is_put_in_the_place_of_the_clients_method(make):
    """To set a `name_async` would have no effect, which its error says; a double of `name` is what is awaited."""
    facade = make(SimpleNamespace(chat=lambda prompt: {"text": "real"}))
    with pytest.raises(
        AttributeError, match=r"^cannot set chat_async: it calls the client's chat, so set chat"
    ):
        facade.chat_async = None
    facade.chat = lambda prompt: {"text": "double"}
    assert asyncio.run(facade.chat_async("x")) == {"text": "double"}
    facade.model_async = "a name of the client's own"
    assert facade.__wrapped__.model_async == "a name of the client's own"
