"""A stranger's code: clients that are wrapped. mypy and pyright read it against the installed package."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

import deepseek_client
from deepseek_client import (
    AsyncDeepSeekClient,
    AsyncFacade,
    DeepSeekError,
    Overloaded,
    Settings,
    WorkerPool,
    get_default_client,
)


class TheirClient:
    def chat(self, prompt: str, temperature: float = 1.0) -> dict[str, Any]:
        return {"text": prompt, "temperature": temperature}


async def the_client_of_deepseek() -> None:
    client = AsyncDeepSeekClient(api_key="sk-of-mine", errors="raise")
    answer = await client.chat_async("hello")
    text: str = answer["text"]
    parsed = await client.parse_async("open the gate", {"scene": "gate"})
    intent: str = parsed["intent"]
    answers = await client.chat_many_async([text, intent], return_exceptions=True, deadline_s=20)
    print(len(answers), client.chat("hello"), client.chat_many(["hello"]))
    assert_type(get_default_client(), AsyncDeepSeekClient)


async def a_client_of_their_own() -> None:
    settings = Settings.from_env({"LLM_MAX_WORKERS": "20"})
    pool = WorkerPool(workers=settings.max_workers, queue_limit=10)
    facade = AsyncFacade(TheirClient(), pool=pool, settings=settings)
    try:
        print(await facade.chat_async("hello", temperature=0.2))
    except Overloaded as refused:
        assert_type(refused.code, str)
        assert_type(refused.retry_after_s, float | None)
    except DeepSeekError as error:
        assert_type(error.retryable, bool)
    async with AsyncDeepSeekClient(client=TheirClient()) as client:
        await client.chat_async("hello", temperature=0.2)


def what_is_wrong() -> None:
    deepseek_client.AsyncFasade()  # type: ignore[attr-defined]  # pyright: ignore
    AsyncDeepSeekClient(key="sk-of-mine")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    AsyncFacade()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    WorkerPool(workers="five", queue_limit=0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
