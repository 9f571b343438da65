"""The clients, each set up as its documentation says: one client object, one TLS context, limits as wide as the fan.

Each is a context manager that gives a Peer. Its libraries are imported inside: a unit has only its own in memory.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

from .wire import KEY, MODEL, THINKING, body_of, text_in

__all__ = ["PEERS", "Peer"]

_TIMEOUT_S = 60
_Ask = Callable[[str], Awaitable[str]]


class Peer(NamedTuple):
    """`ask` answers one prompt, `ask_many` as many as come, in order, `width` at a time."""

    ask: _Ask
    ask_many: Callable[[Sequence[str]], Awaitable[list[str]]]


def _in_turns(ask: _Ask, width: int) -> Peer:
    async def ask_many(prompts: Sequence[str]) -> list[str]:
        turns, texts = iter(enumerate(prompts)), [""] * len(prompts)

        async def take_turns() -> None:
            for place, prompt in turns:
                texts[place] = await ask(prompt)

        await asyncio.gather(*(take_turns() for _ in range(width)))
        return texts

    return Peer(ask, ask_many)


def _ours(ask_by: str, engine: str = "threads") -> Callable[..., AbstractAsyncContextManager[Peer]]:
    @asynccontextmanager
    async def ours(spec: dict[str, Any]) -> AsyncIterator[Peer]:
        from deepseek_client import AsyncDeepSeekClient, Settings, WorkerPool

        pool = WorkerPool(spec["width"], queue_limit=100)
        # The model stays the legacy default: what it costs to send it as its successor is part of the price.
        settings = Settings(api_key=KEY, base_url=spec["url"], engine=engine)
        client = AsyncDeepSeekClient(pool=pool, settings=settings, errors="raise")

        async def ask(prompt: str) -> str:
            text: str = (await client.chat_async(prompt) if ask_by == "chat_async" else client.chat(prompt))[
                "text"
            ]
            return text

        async def ask_many(prompts: Sequence[str]) -> list[str]:
            return [answer["text"] for answer in await client.chat_many_async(prompts)]

        yield Peer(ask, ask_many)
        pool.close()

    return ours


def _legacy_client(spec: dict[str, Any]) -> Any:
    """The legacy client as it is, but for the field that it does not know and needs to get an answer today."""
    import requests

    from deepseek_client import DeepSeekClient
    from deepseek_client import client as module

    def post(url: str, *, json: dict[str, Any], **options: Any) -> Any:
        return requests.post(url, json={**json, "thinking": THINKING}, **options)

    module.requests = SimpleNamespace(post=post)
    client = DeepSeekClient(KEY, MODEL)
    client.base_url = spec["url"]
    return client


@asynccontextmanager
async def _legacy(spec: dict[str, Any]) -> AsyncIterator[Peer]:
    """In the caller's thread, or in a plain executor."""
    client = _legacy_client(spec)
    executor = ThreadPoolExecutor(spec["width"])

    async def ask(prompt: str) -> str:
        text: str = client.chat(prompt)["text"]
        return text

    async def ask_many(prompts: Sequence[str]) -> list[str]:
        return [answer["text"] for answer in executor.map(client.chat, prompts)]

    yield Peer(ask, ask_many)
    executor.shutdown()


@asynccontextmanager
async def _legacy_to_thread(spec: dict[str, Any]) -> AsyncIterator[Peer]:
    client = _legacy_client(spec)
    # The loop's own has min(32, cores + 4) threads.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(spec["width"]))

    async def ask(prompt: str) -> str:
        text: str = (await asyncio.to_thread(client.chat, prompt))["text"]
        return text

    yield _in_turns(ask, spec["width"])


def _httpx(name: str) -> Callable[..., AbstractAsyncContextManager[Peer]]:
    @asynccontextmanager
    async def peer(spec: dict[str, Any]) -> AsyncIterator[Peer]:
        library, width = importlib.import_module(name), spec["width"]
        async with library.AsyncClient(
            verify=ssl.create_default_context(cafile=spec["bundle"]),
            limits=library.Limits(max_connections=width, max_keepalive_connections=width),
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=_TIMEOUT_S,
        ) as client:

            async def ask(prompt: str) -> str:
                reply = await client.post(f"{spec['url']}/chat/completions", json=body_of(prompt))
                return text_in(reply.raise_for_status().json())

            yield _in_turns(ask, width)

    return peer


@asynccontextmanager
async def _aiohttp(spec: dict[str, Any]) -> AsyncIterator[Peer]:
    import aiohttp

    context = ssl.create_default_context(cafile=spec["bundle"])
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=spec["width"], ssl=context),
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
    ) as session:

        async def ask(prompt: str) -> str:
            async with session.post(f"{spec['url']}/chat/completions", json=body_of(prompt)) as reply:
                reply.raise_for_status()
                return text_in(await reply.json())

        yield _in_turns(ask, spec["width"])


@asynccontextmanager
async def _openai(spec: dict[str, Any]) -> AsyncIterator[Peer]:
    import openai

    context, width = ssl.create_default_context(cafile=spec["bundle"]), spec["width"]
    # Of the HTTP library below it, whichever that is.
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=width, max_keepalive_connections=width)
    async with openai.AsyncOpenAI(
        api_key=KEY,
        base_url=spec["url"],
        max_retries=0,
        timeout=_TIMEOUT_S,
        http_client=openai.DefaultAsyncHttpxClient(verify=context, limits=limits),
    ) as client:

        async def ask(prompt: str) -> str:
            fields = body_of(prompt)
            thinking = {"thinking": fields.pop("thinking")}
            reply = await client.chat.completions.create(**fields, extra_body=thinking)
            return reply.choices[0].message.content or ""

        yield _in_turns(ask, width)


PEERS: dict[str, Callable[..., AbstractAsyncContextManager[Peer]]] = {
    "ours": _ours("chat_async"),
    "ours loop": _ours("chat_async", "loop"),
    "ours loop, uvloop": _ours("chat_async", "loop"),
    "ours chat_async": _ours("chat_async"),
    "ours chat": _ours("chat"),
    "legacy": _legacy,
    "legacy executor": _legacy,
    "legacy to_thread": _legacy_to_thread,
    "httpx": _httpx("httpx"),
    "httpx2": _httpx("httpx2"),
    "aiohttp": _aiohttp,
    "AsyncOpenAI": _openai,
}
