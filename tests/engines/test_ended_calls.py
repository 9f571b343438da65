"""What is left of a call that has ended, whichever engine ran it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests
from support.blocking import until
from support.clients import build

from deepseek_client import AsyncDeepSeekClient, Settings, WorkerPool, asyncify, call_options


@contextmanager
def left_behind() -> Iterator[set[str]]:
    """Of which classes of this package objects of the block wait for a collection of cycles; known after it."""
    kinds: set[str] = set()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield kinds
        gc.collect()
        classes = [type(each) for each in gc.garbage]
        kinds.update(each.__name__ for each in classes if each.__module__.startswith("deepseek_client"))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.fixture
def client(sandbox) -> AsyncDeepSeekClient:
    client = AsyncDeepSeekClient(settings=Settings(api_key="sk-test", base_url=sandbox.url))
    assert client.chat("前")["text"]  # a first call makes what stays
    return client


@pytest.mark.parametrize("engine", ["threads", "loop"])
async def test_an_awaited_call_leaves_memory_at_once(client, engine):
    """Nothing of a call waits for a collection of cycles, which would be the longest pause of a busy loop."""
    with call_options(engine=engine):
        await client.chat_async("前")
        with left_behind() as kinds:
            await client.chat_async("道")
    assert kinds == set()


def test_a_blocking_call_leaves_memory_at_once(client):
    """Nor does anything of a call in its caller's own thread."""
    with left_behind() as kinds:
        client.chat("道")
    assert kinds == set()


@pytest.mark.parametrize("engine", ["threads", "loop", "none"])
async def test_a_stream_that_was_read_leaves_memory_at_once(sandbox, engine):
    """Nor does anything of a stream, on either engine and without one, in the rollback."""
    headers = {"Authorization": "Bearer sk-test"}

    def replies(*prompts: str) -> Iterator[str]:
        for prompt in prompts:
            body = {"model": "deepseek-flash", "messages": [{"role": "user", "content": prompt}]}
            response = requests.post(f"{sandbox.url}/chat/completions", headers=headers, json=body)
            yield response.json()["choices"][0]["message"]["content"]

    settings = Settings(use_async=False) if engine == "none" else Settings(engine=engine)
    stream = asyncify(replies, settings=settings)
    assert all([reply async for reply in stream("前", "前")])
    with left_behind() as kinds:
        assert all([reply async for reply in stream("道", "道")])
    assert kinds == set()


@pytest.mark.parametrize("engine", ["threads", "loop"])
async def test_a_coroutine_that_is_closed_ends_its_call(sandbox, engine):
    """Whoever drives a call by hand may drop it: its slot is free, an hour before its time."""
    sandbox.script([{"fault": "hang"}])
    pool = WorkerPool(1, 0)
    settings = Settings(api_key="sk-test", base_url=sandbox.url, deadline_s=3600, read_timeout_s=3600)
    with call_options(engine=engine):
        call = build(settings, pool=pool).chat_async("hi")
        call.send(None)
    if engine == "threads":
        await until(lambda: sandbox.stats()["requests"] == 1)
    call.close()
    await until(lambda: pool.stats()["busy"] == 0)


@pytest.mark.parametrize("engine", ["threads", "loop"])
def test_a_call_whose_event_loop_is_closed_ends(sandbox, engine):
    """Nobody goes on with its task, nor sees to its deadline: its slot is free, an hour before its time."""
    sandbox.script([{"fault": "hang"}])
    pool = WorkerPool(1, 0)
    settings = Settings(api_key="sk-test", base_url=sandbox.url, deadline_s=3600, read_timeout_s=3600)
    loop = asyncio.new_event_loop()
    with call_options(engine=engine):
        task = loop.create_task(build(settings, pool=pool).chat_async("hi"))
    loop.run_until_complete(until(lambda: sandbox.stats()["requests"] == 1))
    loop.close()
    del task
    gc.collect()
    asyncio.run(until(lambda: pool.stats()["busy"] == 0))
