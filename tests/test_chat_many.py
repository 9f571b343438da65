"""chat_many_async: a batch of prompts in order, in turns, and beside other calls."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
from support.clients import build
from support.patience import GIVE_UP_S

from deepseek_client import AsyncDeepSeekClient, DeadlineExceeded, Settings, UpstreamUnavailable, WorkerPool
from deepseek_client.events import CallFinished, subscribe, unsubscribe
from deepseek_client.sandbox import SandboxConfig, running


class TestChatMany:
    """chat_many_async: order, width, failures."""

    async def test_fifty_prompts_with_five_workers(self):
        """Fifty prompts come back in order, and the API saw exactly five of them at once."""
        with running(SandboxConfig(port=0, latency_ms=20)) as box:
            env = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": box.url, "LLM_MAX_WORKERS": "5"}
            prompts = [f"测试提示词 {number}" for number in range(50)]
            answers = await build(Settings.from_env(env)).chat_many_async(prompts)
            assert all(
                f"「{prompt}」" in answer["text"] for prompt, answer in zip(prompts, answers, strict=True)
            )
            assert box.stats()["peak_in_flight"] == 5
            assert box.stats()["requests"] == 50

    async def test_more_prompts_than_slots(self, settings):
        """A batch larger than workers and queue together is not refused: it takes turns."""
        client = build(settings, pool=WorkerPool(2, 0))
        assert len(await client.chat_many_async(["hi"] * 20)) == 20

    async def test_failures_in_place(self, sandbox, settings):
        """return_exceptions=True puts a failure where its answer would be, in both modes."""
        for errors in ("raise", "swallow"):
            sandbox.script([{"fault": "ok"}, {"fault": "status", "status": 500}, {"fault": "ok"}])
            client = build(settings, errors=errors, pool=WorkerPool(1, 0))
            first, second, third = await client.chat_many_async("abc", return_exceptions=True)
            assert isinstance(second, UpstreamUnavailable)
            assert "text" in first
            assert "text" in third

    async def test_the_first_failure_is_raised(self, sandbox, settings):
        """With errors="raise" the first failure ends the batch, and what was not begun is not sent."""
        sandbox.script([{"fault": "status", "status": 500}])
        with pytest.raises(UpstreamUnavailable):
            await build(settings, pool=WorkerPool(1, 0)).chat_many_async(["hi"] * 10)
        assert sandbox.stats()["requests"] == 1

    async def test_swallowed_failures(self, sandbox, settings):
        """With errors="swallow" a failed prompt is {"text": ""} and the others have their answers."""
        sandbox.script([{"fault": "status", "status": 500}])
        client = build(settings, errors="swallow", pool=WorkerPool(1, 0))
        first, second = await client.chat_many_async(["a", "b"])
        assert first == {"text": ""}
        assert "b" in second["text"]

    async def test_a_common_deadline(self, sandbox, settings):
        """With deadline_s the prompts whose turn never came are DeadlineExceeded, unsent."""
        sandbox.script([{"fault": "hang"}])
        client = build(settings, pool=WorkerPool(1, 0))
        answers = await client.chat_many_async("abc", return_exceptions=True, deadline_s=0.1)
        assert [type(answer) for answer in answers] == [DeadlineExceeded] * 3
        assert sandbox.stats()["requests"] <= 1  # the first, unless no thread began it in time


async def test_a_batch_beside_other_calls_counts_each_prompt_once(settings):
    """A prompt that finds no place while others of its batch are under way is counted by its end, not as refused."""
    ended: list[str | None] = []

    def note(event: object) -> None:
        if isinstance(event, CallFinished):
            ended.append(event.error)

    gate, entered = threading.Event(), threading.Event()

    def chat(prompt: str) -> dict[str, str]:
        if prompt == "block":
            entered.set()
            assert gate.wait(GIVE_UP_S)
        return {"text": prompt}

    pool = WorkerPool(workers=2, queue_limit=0)
    client = AsyncDeepSeekClient(client=SimpleNamespace(chat=chat), settings=settings, pool=pool)
    blocking = asyncio.ensure_future(client.chat_async("block"))
    await asyncio.to_thread(entered.wait, GIVE_UP_S)
    subscribe(note)
    try:
        assert len(await client.chat_many_async(["a", "b", "c"])) == 3
    finally:
        unsubscribe(note)
        gate.set()
        await blocking
    assert ended == [None, None, None]
    assert pool.stats()["rejected"] == 0
