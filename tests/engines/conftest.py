"""A pool, and the engine on which a test's calls run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deepseek_client import WorkerPool, call_options


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """Two workers, and room for one call that waits."""
    made = WorkerPool(workers=2, queue_limit=1)
    yield made
    made.close()


@pytest.fixture
def on_the_loop() -> Iterator[None]:
    """Every call of the test runs on the event loop, unless it says otherwise."""
    with call_options(engine="loop"):
        yield
