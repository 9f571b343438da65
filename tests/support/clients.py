"""DeepSeek clients of the tests, the ways to call them, and what an application counted."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from deepseek_client import AsyncDeepSeekClient, Settings


class TheirClient:
    """What a deployment has: a blocking client of its own."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def chat(self, prompt: str) -> dict[str, str]:
        self.threads.append(threading.current_thread().name)
        return {"text": f"their {prompt}"}


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


def counted(client: FlaskClient, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, as GET /metrics shows them."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
