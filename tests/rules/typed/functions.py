"""A stranger's code: functions made awaitable. mypy and pyright read it against the installed package."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from typing_extensions import assert_type

from deepseek_client import AsyncFacade, asyncify, call_options, per_thread


class TheirClient:
    def chat(self, prompt: str, *, temperature: float = 1.0) -> dict[str, str]:
        return {"text": f"{prompt} {temperature}"}


def ask(prompt: str, *, temperature: float = 1.0) -> dict[str, str]:
    return TheirClient().chat(prompt, temperature=temperature)


async def a_function_keeps_its_signature() -> None:
    ask_async = asyncify(ask)
    with call_options(deadline_s=120, engine="threads"):
        assert_type(await ask_async("hello", temperature=0.2), dict[str, str])
    await ask_async(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ask_async("hello", top_p=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await ask_async()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def a_bound_method_keeps_its_signature() -> None:
    chat_async = asyncify(TheirClient().chat)
    assert_type(await chat_async("hello"), dict[str, str])
    await chat_async("hello", 0.2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def words(prompt: str, *, upper: bool = False) -> Iterator[str]:
    yield prompt.upper() if upper else prompt


async def a_generator_function_is_iterated() -> None:
    words_async = asyncify(words)
    assert_type(words_async("hello", upper=True), AsyncIterator[str])
    async for word in words_async("hello"):
        assert_type(word, str)
    words_async(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_client_is_reached_by_its_paths() -> None:
    client = asyncify(TheirClient())
    assert_type(client, Any)
    print(await client.chat("hello"))


async def a_client_per_thread() -> None:
    print(await AsyncFacade(per_thread(TheirClient)).chat_async("hello"))
    assert_type(per_thread(TheirClient), TheirClient)


def what_is_wrong() -> None:
    call_options(deadline="soon")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    call_options(deadline_s="soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    per_thread(TheirClient())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
