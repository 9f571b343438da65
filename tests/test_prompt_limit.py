"""LLM_PROMPT_LIMIT: what a call would send is looked at whichever way it is called."""

from __future__ import annotations

import asyncio

import pytest
from support.clients import build

from deepseek_client import InvalidRequest, Settings, asyncify


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "words"),
    [
        ("chat", ("x" * 301,), {}, "need at most 300"),
        ("chat", (), {"prompt": "x" * 301}, "need at most 300"),
        ("chat", (), {"prompt": 7}, "need a str"),
        ("parse", ("打坐",), {"ctx": {"scene": "x" * 301}}, "need at most 300"),
        ("parse", (), {"ctx": {"scene": "x" * 301}, "utterance": "打坐"}, "need at most 300"),
    ],
    ids=["in its place", "prompt", "type", "context", "both"],
)
@pytest.mark.parametrize("way", ["blocking", "awaited", "by its path"])
def test_names_and_paths_are_no_way_around_it(sandbox, way, method, args, kwargs, words):
    """Arguments may come by name, and a method may be called by its path: nothing is sent beyond the limit."""
    client = build(Settings(api_key="sk-test", base_url=sandbox.url, prompt_limit=300))

    async def by_path() -> object:
        return await getattr(asyncify(client), method)(*args, **kwargs)

    call = {
        "blocking": lambda: getattr(client, method)(*args, **kwargs),
        "awaited": lambda: asyncio.run(getattr(client, f"{method}_async")(*args, **kwargs)),
        "by its path": lambda: asyncio.run(by_path()),
    }[way]
    with pytest.raises(InvalidRequest, match=words):
        call()
    assert sandbox.stats()["requests"] == 0
    assert client.chat(prompt="x" * 300)["text"]
