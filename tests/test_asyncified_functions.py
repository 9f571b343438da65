"""`asyncify`: functions, generator functions, and objects that can be called."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from deepseek_client import AsyncFacade, WorkerPool, asyncify


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(workers=1, queue_limit=0)
    yield made
    made.close()


async def test_a_function_is_an_async_function(pool):
    """Its async twin has its name, its signature and its result."""

    def ask(prompt: str) -> str:
        """Asks."""
        return f"{prompt} {threading.current_thread().name}"

    ask_async = asyncify(ask, pool=pool)
    assert inspect.iscoroutinefunction(ask_async)
    assert (ask_async.__name__, ask_async.__doc__) == ("ask", "Asks.")
    assert inspect.signature(ask_async) == inspect.signature(ask)
    assert (await ask_async("hi")).startswith("hi llm-worker")


async def test_a_generator_function_is_iterated(pool):
    """A generator function, which may choose of a client's stream what it likes, becomes an `async for`."""

    @functools.partial(asyncify, pool=pool)
    def texts(prompt: str) -> Iterator[str]:
        for part in prompt.split():
            yield part.upper()

    assert texts.__name__ == "texts"
    assert [text async for text in texts("a b")] == ["A", "B"]


async def test_an_object_that_can_be_called_is_a_function(pool):
    """What can be called is a function, whatever else it can do; its paths are had by a facade."""

    class Model:
        def __call__(self, prompt: str) -> str:
            return f"called with {prompt}"

        def generate(self, prompt: str) -> str:
            return f"generated from {prompt}"

    assert await asyncify(Model(), pool=pool)("hi") == "called with hi"
    assert await asyncify(AsyncFacade(Model(), pool=pool)).generate("hi") == "generated from hi"


@pytest.mark.parametrize("kind", ["function", "generator"])
def test_what_is_async_already_is_refused(kind):
    """An async function needs no asyncify."""

    async def function() -> None: ...

    async def generator() -> Any:
        yield 1

    with pytest.raises(TypeError, match="async already"):
        asyncify({"function": function, "generator": generator}[kind])
