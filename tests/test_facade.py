"""The facade: any blocking client becomes awaitable."""

from __future__ import annotations

import asyncio
import inspect
import threading
from types import SimpleNamespace
from unittest.mock import Mock, patch

import pytest
from support.patience import GIVE_UP_S

from deepseek_client import AsyncDeepSeekClient, AsyncFacade, ClientClosed, Overloaded, Settings, WorkerPool


class Plain:
    """A client that has nothing to do with this project."""

    colour = "red"

    def add(self, one: int, *, other: int = 0) -> int:
        return one + other

    def fail(self) -> None:
        raise LookupError("of the client")


@pytest.fixture
def pool():
    made = WorkerPool(workers=2, queue_limit=0)
    yield made
    made.close()


@pytest.fixture
def facade(pool):
    return AsyncFacade(Plain(), pool=pool)


class TestAnyClient:
    """AsyncFacade wraps whatever it is given."""

    async def test_a_method_gains_an_awaitable_twin(self, facade):
        """`name_async` runs `name` with its arguments, in another thread."""
        assert await facade.add_async(1, other=2) == 3

    async def test_calls_run_at_once(self):
        """Three calls are in flight at the same moment, or the barrier breaks."""
        gate = threading.Barrier(3, timeout=GIVE_UP_S)
        client = SimpleNamespace(chat=lambda prompt: (gate.wait(), prompt)[1])
        facade = AsyncFacade(client, pool=WorkerPool(workers=3, queue_limit=0))
        assert await asyncio.gather(*(facade.chat_async(prompt) for prompt in "abc")) == ["a", "b", "c"]

    async def test_ten_thousand_calls_lose_no_slot(self):
        """After ten thousand calls of a method that does nothing every slot is free and each result is its own."""
        pool = WorkerPool(workers=5, queue_limit=9_995)
        facade = AsyncFacade(SimpleNamespace(noop=lambda number: number), pool=pool)
        assert await asyncio.gather(*map(facade.noop_async, range(10_000))) == list(range(10_000))
        assert (pool.stats()["busy"], pool.stats()["queued"]) == (0, 0)
        pool.close()

    async def test_an_exception_comes_back_as_it_is(self, facade):
        """What the client raises is raised, with its own type."""
        with pytest.raises(LookupError, match="of the client"):
            await facade.fail_async()

    def test_every_other_attribute_is_the_clients(self, facade):
        """Attributes are read from, set on and deleted from the wrapped client."""
        assert facade.colour == "red"
        facade.colour = "blue"
        assert facade.__wrapped__.colour == "blue"
        del facade.colour
        assert facade.colour == "red"
        assert facade.add(1) == 1

    @pytest.mark.parametrize("name", ["nothing", "nothing_async", "colour_async"])
    def test_an_attribute_that_the_client_lacks(self, facade, name):
        """A missing attribute is an AttributeError; only methods have a twin."""
        with pytest.raises(AttributeError):
            getattr(facade, name)

    async def test_a_mock_is_a_client_too(self, pool):
        """A Mock, which has every attribute, gets its calls through the pool."""
        client = Mock()
        client.chat.return_value = {"text": "hi"}
        assert await AsyncFacade(client, pool=pool).chat_async("x") == {"text": "hi"}
        client.chat.assert_called_once_with("x")

    async def test_a_clients_own_async_method_is_not_used_silently(self, pool):
        """`name_async` is the facade's, whatever the client has; the client's own is reached by __wrapped__."""

        class Both:
            def greet(self) -> str:
                return "blocking"

            async def greet_async(self) -> str:
                return "its own"

        facade = AsyncFacade(Both(), pool=pool)
        assert await facade.greet_async() == "blocking"
        assert await facade.__wrapped__.greet_async() == "its own"

    async def test_patching_a_facade_patches_its_client(self, facade):
        """unittest.mock.patch.object works on a facade, and leaves it as it was."""
        with patch.object(facade, "add", return_value=42):
            assert await facade.add_async(1) == 42
        assert await facade.add_async(1) == 1

    async def test_a_full_pool_refuses(self, pool):
        """A call beyond workers and queue is Overloaded at once."""
        entered, gate = threading.Barrier(3, timeout=GIVE_UP_S), threading.Event()

        def block() -> None:
            entered.wait()
            assert gate.wait(GIVE_UP_S)

        facade = AsyncFacade(SimpleNamespace(block=block), pool=pool)
        calls = [asyncio.ensure_future(facade.block_async()) for _ in range(2)]
        await asyncio.to_thread(entered.wait)
        with pytest.raises(Overloaded):
            await facade.block_async()
        gate.set()
        await asyncio.gather(*calls)

    async def test_a_closed_facade_refuses(self, facade, pool):
        """After close, which may be repeated and ends a `with`, a call is the program's mistake; the pool goes on."""
        with facade as same, facade:
            assert same is facade
        async with facade:
            pass
        with pytest.raises(ClientClosed):
            await facade.add_async(1)
        assert await AsyncFacade(Plain(), pool=pool).add_async(1) == 1

    def test_the_repr_names_the_client_and_no_key(self):
        """A facade's repr says what it wraps; it holds no key."""
        client = AsyncDeepSeekClient("sk-secret", settings=Settings())
        assert repr(client) == "<AsyncDeepSeekClient over DeepSeekClient>"

    async def test_the_pool_is_sized_by_the_settings(self):
        """Without a pool of its own a facade uses the process-wide one of LLM_MAX_WORKERS threads."""
        settings = Settings.from_env({"LLM_MAX_WORKERS": "3", "LLM_QUEUE_LIMIT": "0"})
        entered, gate = threading.Barrier(4, timeout=GIVE_UP_S), threading.Event()

        def block() -> None:
            entered.wait()
            assert gate.wait(GIVE_UP_S)

        facade = AsyncFacade(SimpleNamespace(block=block), settings=settings)
        calls = [asyncio.ensure_future(facade.block_async()) for _ in range(3)]
        await asyncio.to_thread(entered.wait)
        with pytest.raises(Overloaded, match="All 3 workers are busy and 0 calls wait"):
            await facade.block_async()
        gate.set()
        await asyncio.gather(*calls)


def test_classes_can_be_inspected():
    """inspect.signature and help() work on the classes: nothing of theirs looks like a wrapper."""
    assert "client" in inspect.signature(AsyncFacade).parameters
    assert "api_key" in inspect.signature(AsyncDeepSeekClient).parameters


def test_dir_runs_no_property_of_the_client():
    """dir() of a facade names the client's methods and asks the client for nothing."""

    class Odd:
        @property
        def broken(self) -> None:
            raise RuntimeError("asked")

        def ask(self) -> None: ...

    assert "ask_async" in dir(AsyncFacade(Odd()))
