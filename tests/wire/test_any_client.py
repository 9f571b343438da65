"""Clients that nobody here wrote: whatever one is blocked in, its thread is back when its call has ended."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bench.sdk_clients import CLIENTS
from bench.sdk_stub import PHASES, StubServer
from support.blocking import until
from support.patience import GIVE_UP_S

from deepseek_client import AsyncFacade, DeadlineExceeded, Overloaded, PoolClosed, WorkerPool, call_options

TESTED = [
    "urllib", "requests, an adapter of its own", "requests, pool_block", "openai", "anthropic", "boto3", "redis",
]  # fmt: skip
_TOO_NEW = ["openai", "anthropic"] if sys.version_info < (3, 11) else []
TESTED = [name for name in TESTED if name not in _TOO_NEW]  # what they are made of wants Python 3.11
each_client = pytest.mark.parametrize("name", TESTED)
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Unverified HTTPS request"
    ),  # urllib3's, of a handshake that never ends
    # What an SDK leaves to the garbage collector when its method ends in the middle.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest.fixture(autouse=True)
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")


@pytest.fixture(autouse=True)
def swept() -> Iterator[None]:
    """What an SDK leaves to the garbage collector is collected here, where a warning of it is ignored."""
    yield
    gc.collect()


def facade_of(name: str, stub: StubServer, workers: int = 1) -> tuple[AsyncFacade, WorkerPool]:
    pool = WorkerPool(workers, queue_limit=100)
    return AsyncFacade(CLIENTS[name].make(stub), pool=pool), pool


async def is_free(pool: WorkerPool) -> None:
    await until(lambda: pool.stats()["busy"] == 0)


@each_client
@pytest.mark.parametrize("phase", PHASES)
async def test_a_deadline_frees_the_thread(name, phase):
    """A call that hangs raises DeadlineExceeded and gives its thread back; nothing is sent a second time."""
    with StubServer(phase) as stub:
        facade, pool = facade_of(name, stub)
        with pytest.raises(DeadlineExceeded), call_options(deadline_s=0.5):
            await facade.ask_async("tok-1")
        await is_free(pool)
        assert stub.requests <= 1


@each_client
async def test_a_cancelled_task_frees_the_thread(name):
    """A task that is cancelled while its server is silent ends the call; the client is sound after it."""
    with StubServer("headers") as stub:
        facade, pool = facade_of(name, stub)
        task = asyncio.create_task(facade.ask_async("tok-1"))
        assert await asyncio.to_thread(stub.reached.wait, GIVE_UP_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await is_free(pool)
        assert stub.requests == 1
        stub.phase = ""
        assert await facade.ask_async("tok-2") == "tok-2"


@each_client
async def test_a_closing_pool_frees_the_thread(name):
    """The end of a process ends the call with PoolClosed."""
    with StubServer("headers") as stub:
        facade, pool = facade_of(name, stub)
        task = asyncio.create_task(facade.ask_async("tok-1"))
        assert await asyncio.to_thread(stub.reached.wait, GIVE_UP_S)
        pool.close()
        with pytest.raises(PoolClosed):
            await task
        await is_free(pool)


@each_client
async def test_aborts_at_random_leave_a_sound_client(name):
    """Among calls of one client object that are aborted at any moment, each of the others gets its own answer.

    Afterwards no descriptor and no slot of a pool of the client's own is lost.
    """
    dice = random.Random(name)
    with StubServer(delay_s=lambda: dice.random() * 0.01) as stub:
        facade, pool = facade_of(name, stub, workers=4)
        before = len(os.listdir("/dev/fd"))

        async def ask(number: int) -> Any:
            with call_options(deadline_s=dice.choice([0.002, 0.005, 0.01, 0.02, 60.0])):
                try:
                    return await facade.ask_async(f"tok-{number}")
                except (DeadlineExceeded, Overloaded):
                    return None

        for start in range(0, 48, 8):
            answers = await asyncio.gather(*(ask(number) for number in range(start, start + 8)))
            right = [f"tok-{number}" for number in range(start, start + 8)]
            assert [answer or own for answer, own in zip(answers, right, strict=True)] == right
        await is_free(pool)
        last = [f"tok-{number}" for number in range(100, 108)]
        assert await asyncio.gather(*map(facade.ask_async, last)) == last
        assert (
            len(os.listdir("/dev/fd")) <= before + 2 * 8
        )  # as many connections as may be kept, at both ends


async def test_a_clients_own_threads():
    """A client that asks from threads of its own, with a copied context, has all of its sockets ended."""
    with StubServer("headers") as stub:
        ask = CLIENTS["urllib"].make(stub).ask

        class Fanning:
            def ask(self, token: str) -> list[str]:
                with ThreadPoolExecutor(3) as executor:
                    runs = [contextvars.copy_context().run for _ in range(3)]
                    return list(executor.map(lambda run: run(ask, token), runs))

        pool = WorkerPool(1, queue_limit=0)
        task = asyncio.create_task(AsyncFacade(Fanning(), pool=pool).ask_async("tok-1"))
        await until(lambda: stub.requests == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await is_free(pool)


def test_the_stub_answers_each_client():
    """What the other tests rest on: outside of any call each client gets its answer."""
    for name in TESTED:
        with StubServer() as stub:
            answers: list[str] = []
            thread = threading.Thread(target=lambda: answers.append(CLIENTS[name].make(stub).ask("tok-7")))  # noqa: B023
            thread.start()
            thread.join(GIVE_UP_S)
            assert answers == ["tok-7"], name
