"""DeepSeek clients of the facade's tests, and the ways to call them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from deepseek_client import AsyncDeepSeekClient, Settings

UNKNOWN = {"intent": "unknown", "slots": {}, "allowed": True, "reason": ""}


def build(settings: Settings, **options: Any) -> AsyncDeepSeekClient:
    return AsyncDeepSeekClient(settings=settings, **{"errors": "raise", **options})


def called(client: AsyncDeepSeekClient, way: str) -> Any:
    context = SimpleNamespace()
    return {
        "chat_async": lambda: asyncio.run(client.chat_async("hi")),
        "parse_async": lambda: asyncio.run(client.parse_async("打坐", context)),
        "chat": lambda: client.chat("hi"),
        "parse": lambda: client.parse("打坐", context),
    }[way]()
