"""Every way into the application, and what a call through one must not leave behind."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest
from flask.testing import FlaskClient

from deepseek_client.engines.shared import default_pool
from deepseek_client.sandbox import RunningSandbox
from deepseek_client.settings import ENGINES

from .faults import meet

WORKERS, QUEUE_LIMIT = 3, 50
"""Of the application into which they lead."""


class Entry(NamedTuple):
    """One way into the application."""

    path: str
    use_async: bool = True

    @property
    def mode(self) -> str:
        return "async" if self.use_async and not self.path.endswith("/sync") else "sync"

    @property
    def name(self) -> str:
        return self.path + ("" if self.use_async else "-async_disabled")

    @property
    def method(self) -> str:
        return "parse" if self.path.startswith("parse") else "chat"

    def post(self, client: FlaskClient) -> Any:
        text = "打坐修炼"
        return client.post(
            f"/api/llm/{self.path}",
            json={"prompt": text, "utterance": text, "requests": [{"prompt": text}]},
        )

    def told(self, answer: Any) -> tuple[int, str | None, str | None]:
        """The status, the code and the Retry-After that the caller of one call got; a batch has none of its own."""
        body = answer.get_json()
        if self.path == "batch":
            assert (answer.status_code, body["total"]) == (200, 1)
            return 200, body["results"][0].get("code"), answer.headers.get("Retry-After")
        assert answer.status_code == 200 or body["text"] == ""
        return answer.status_code, body.get("code"), answer.headers.get("Retry-After")

    def expected(self, status: int, code: str | None, retry_after: str | None = None) -> tuple[Any, ...]:
        return (200, code, None) if self.path == "batch" else (status, code, retry_after)


ENTRIES = [
    Entry(path, use_async)
    for use_async in (True, False)
    for path in ("chat", "chat/sync", "parse", "parse/sync", "batch")
]


def over(entries: list[Entry]) -> pytest.MarkDecorator:
    """Each entry on each engine that it knows: a call in the thread of its request knows none, and goes once."""
    ways = [
        pytest.param(engine, entry, id=f"{engine}-{entry.name}")
        for entry in entries
        for engine in (ENGINES if entry.mode == "async" else ENGINES[:1])
    ]
    return pytest.mark.parametrize(("each_engine", "entry"), ways, indirect=["each_engine"])


over_entries = over(ENTRIES)
over_pool_entries = over([entry for entry in ENTRIES if entry.mode == "async"])
over_thread_entries = over([entry for entry in ENTRIES if entry.mode == "sync"])


def leaves_nothing(sandbox: RunningSandbox) -> None:
    """Each thread of the pool is idle, each slot is free, and the API works on nothing."""
    pool = default_pool(WORKERS, QUEUE_LIMIT)
    asyncio.run(meet(pool))
    assert (pool.stats()["busy"], pool.stats()["queued"]) == (0, 0)
    sandbox.wait_until(lambda stats: stats["in_flight"] == 0)
