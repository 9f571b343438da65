"""What the tests of a call share."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest

from deepseek_client import WorkerPool, events
from deepseek_client.calls import ending
from deepseek_client.engines import shared, threads


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it `end_calls` ends what this test began and nothing else, and the process goes on after the test."""
    monkeypatch.setattr(ending, "is_ending", False)
    monkeypatch.setattr(ending, "_sleepers", set())
    monkeypatch.setattr(threads, "_pools", weakref.WeakSet())
    monkeypatch.setattr(shared, "_defaults", {})


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """One worker and no queue."""
    made = WorkerPool(workers=1, queue_limit=0)
    yield made
    made.close()


@pytest.fixture
def reports() -> Iterator[list[events.CallFinished]]:
    """The report of each call that ends in this test."""
    seen: list[events.CallFinished] = []

    def note(event: object) -> None:
        if isinstance(event, events.CallFinished):
            seen.append(event)

    events.subscribe(note)
    yield seen
    events.unsubscribe(note)
