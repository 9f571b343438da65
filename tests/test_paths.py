"""`asyncify`: clients by their own paths."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from support.blocking import until
from support.patience import GIVE_UP_S

from deepseek_client import (
    AsyncDeepSeekClient,
    AsyncFacade,
    ClientClosed,
    DeadlineExceeded,
    Settings,
    UpstreamUnavailable,
    WorkerPool,
    asyncify,
    call_options,
    per_thread,
)
from deepseek_client.events import CallFinished, subscribe, unsubscribe


class Completions:
    """What asks."""

    def __init__(self, owner: Client) -> None:
        self.owner = owner

    def create(self, prompt: str, *, stream: bool = False) -> Any:
        """Asks the model."""
        self.owner.threads.append(threading.current_thread().name)
        text = f"{prompt} {self.owner.timeout}"
        return iter(text.split()) if stream else text


class Client:
    """A client with paths, a lazy property, and names that others might want for themselves."""

    def __init__(self, timeout: int = 60, threads: list[str] | None = None) -> None:
        self.timeout = timeout
        self.threads: list[str] = [] if threads is None else threads

    @functools.cached_property
    def chat(self) -> SimpleNamespace:
        self.threads.append(threading.current_thread().name)
        return SimpleNamespace(completions=Completions(self))

    @property
    def aio(self) -> SimpleNamespace:
        return SimpleNamespace(name=lambda: "its own aio")

    def with_options(self, *, timeout: int) -> Client:
        return Client(timeout, self.threads)

    @property
    def broken(self) -> None:
        raise RuntimeError("asked")


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(workers=2, queue_limit=0)
    yield made
    made.close()


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def path(client: Client, pool: WorkerPool) -> Any:
    return asyncify(client, pool=pool)


async def test_a_path_is_awaited(path, client):
    """The client's own path leads to its method; all of it, lazy properties too, is looked up by a worker."""
    assert await path.chat.completions.create("hi") == "hi 60"
    assert len(client.threads) == 2
    assert all(name.startswith("llm-worker") for name in client.threads)


async def test_a_path_is_iterated(path):
    """Where the method gives a stream, the same call is an `async for`."""
    assert [part async for part in path.chat.completions.create("a b", stream=True)] == ["a", "b", "60"]


async def test_a_path_is_entered(path):
    """`async with` gives the stream and ends it with the block."""
    async with path.chat.completions.create("a b", stream=True) as chunks:
        assert await anext(chunks) == "a"
    assert [chunk async for chunk in chunks] == []


async def test_a_stream_has_nothing_but_its_chunks(path):
    """What the client's own stream has besides is not there, and the sentence says where it can be used."""
    async with path.chat.completions.create("a b", stream=True) as chunks:
        with pytest.raises(
            AttributeError, match=r"has no text_stream: .* in a generator function for asyncify"
        ):
            _ = chunks.text_stream


async def test_an_await_of_a_stream_says_how_to_write_it(path):
    """`async for chunk in await ...` fails with the form that works."""
    with pytest.raises(TypeError, match=r"chat.completions.create gave a stream .* without `await`"):
        async for _ in await path.chat.completions.create("a", stream=True):
            pass


async def test_a_path_goes_on_from_a_call(path, client):
    """What a call would give can be gone on from, as from `with_options`: one call on the worker does all of it."""
    assert await path.with_options(timeout=5).chat.completions.create("hi") == "hi 5"
    assert all(name.startswith("llm-worker") for name in client.threads)


async def test_no_name_of_a_client_is_taken(path):
    """Names that wrappers like to take are the client's."""
    assert await path.aio.name() == "its own aio"


async def test_the_method_is_reported_by_its_path(path):
    """Logs and metrics name a call as it is written."""
    seen: list[str] = []

    def note(event: object) -> None:
        if isinstance(event, CallFinished):
            seen.append(event.method)

    subscribe(note)
    try:
        await path.chat.completions.create("hi")
        await path.with_options(timeout=5).chat.completions.create("hi")
    finally:
        unsubscribe(note)
    assert seen == ["chat.completions.create", "with_options().chat.completions.create"]


@pytest.mark.parametrize(
    "start", [asyncio.create_task, asyncio.ensure_future, lambda call: asyncio.wait_for(call, 9)]
)
async def test_a_call_is_a_coroutine_to_asyncio(path, start):
    """A call can be given to everything of asyncio's that takes a coroutine."""
    assert await start(path.chat.completions.create("hi")) == "hi 60"
    assert await asyncio.gather(path.aio.name(), path.aio.name()) == ["its own aio"] * 2


def test_a_call_is_run_by_asyncio_run(path):
    """`asyncio.run` takes a call."""
    assert asyncio.run(path.aio.name()) == "its own aio"


async def test_a_forgotten_await_warns(path):
    """A call that is neither awaited, iterated nor entered is told of, as a coroutine is."""
    with pytest.warns(RuntimeWarning, match=r"Client.chat.completions.create\(...\)> was never awaited"):
        path.chat.completions.create("hi")


async def test_a_name_that_is_not_there(path):
    """A misspelt name is an AttributeError of the client, at the call."""
    with pytest.raises(AttributeError, match="'Client' object has no attribute 'chatt'"):
        await path.chatt.completions.create("hi")


async def test_a_call_is_made_once(path, client):
    """Read or awaited again, a call raises: it would be sent, and billed, again without a word."""
    call = path.chat.completions.create("a b", stream=True)
    assert [part async for part in call] == ["a", "b", "60"]
    for again in (call.__aiter__, call.__await__):
        with pytest.raises(RuntimeError, match="write the call again"):
            again()
    with pytest.raises(RuntimeError, match="write the call again"):
        async with call:
            pass
    call.close()
    assert len(client.threads) == 2  # of the lookup and of the call
    answer = path.chat.completions.create("hi")
    assert await answer == "hi 60"
    with pytest.raises(RuntimeError):
        await answer


def test_private_names_are_not_the_clients(path):
    """A name with an underscore is an AttributeError at once: tools probe for such names, and must find none."""
    for name in ("_repr_html_", "__array__", "__name__"):
        assert not hasattr(path.chat, name)
        assert not hasattr(path.with_options(timeout=1).chat, name)


def test_a_path_sets_nothing(path):
    """To set an attribute by a path is refused, and says where it belongs."""
    with pytest.raises(AttributeError, match="cannot set timeout by a path: set it on the client"):
        path.timeout = 3


def test_a_copy_of_a_path_is_the_path(path):
    """Whatever copies a configuration that holds a path copies neither the client nor its attributes."""
    assert copy.copy(path) is path
    assert copy.deepcopy({"client": path})["client"] is path


def test_what_lies_there_shows_through(path, client):
    """dir(), docstrings, signatures and `__wrapped__` are those of the client's own things."""
    assert path.__wrapped__ is client
    assert path.chat.completions.__wrapped__ is client.chat.completions
    assert {"chat", "with_options", "broken"} <= set(dir(path))
    assert dir(path.chat.completions) == ["create", "owner"]
    assert inspect.getdoc(path.chat.completions.create) == "Asks the model."
    assert (
        str(inspect.signature(path.chat.completions.create))
        == "(prompt: 'str', *, stream: 'bool' = False) -> 'Any'"
    )
    assert "Client.chat.completions" in repr(path.chat.completions)


def test_to_look_at_a_call_makes_none(path, client):
    """What lies behind a call is not looked up for a mere look."""
    further = path.with_options(timeout=5).chat
    assert "completions" not in dir(further)
    assert not hasattr(further, "__wrapped__")
    assert client.threads == []


async def test_a_client_of_each_thread(pool):
    """Over `per_thread` a path is looked up on the client of the worker that runs it, and none is made elsewhere."""
    made: list[str] = []

    def factory() -> Client:
        made.append(threading.current_thread().name)
        return Client()

    path = asyncify(per_thread(factory), pool=pool)
    assert await path.chat.completions.create("hi") == "hi 60"
    assert [part async for part in path.chat.completions.create("hi", stream=True)] == ["hi", "60"]
    assert made
    assert all(name.startswith("llm-worker") for name in made)


async def test_the_paths_of_a_facade(pool, client):
    """A facade's paths are its client's, on its pool, and end with it."""
    facade = AsyncFacade(client, pool=pool)
    path = asyncify(facade)
    assert path.__wrapped__ is client
    assert await path.chat.completions.create("hi") == "hi 60"
    facade.close()
    with pytest.raises(ClientClosed):
        await path.chat.completions.create("hi")


async def test_the_deadline_of_a_block_holds(path, client):
    """`call_options` holds for a path as for any call."""
    gate = threading.Event()
    client.wait = gate.wait
    with call_options(deadline_s=0.05), pytest.raises(DeadlineExceeded):
        await path.wait(GIVE_UP_S)
    gate.set()


async def test_a_facade_refuses_a_stream(pool):
    """`x_async` of a method that gives a stream fails with the form that works, and the stream is closed."""
    closed = threading.Event()

    def talk() -> Iterator[int]:
        try:
            yield 1
        finally:
            closed.set()

    facade = AsyncFacade(SimpleNamespace(talk=talk), pool=pool)
    with pytest.raises(TypeError, match=r"asyncify\(client\).talk\(...\)"):
        await facade.talk_async()
    assert [chunk async for chunk in asyncify(facade).talk()] == [1]
    await until(closed.is_set)


class TestDeepSeekClients:
    """Streams of a client that AsyncDeepSeekClient wraps."""

    class Theirs:
        def __init__(self, url: str) -> None:
            self.url = url

        def chat(self, prompt: str) -> Iterator[bytes]:
            body = {
                "model": "deepseek-flash",
                "stream": True,
                "messages": [{"role": "user", "content": prompt}],
            }
            headers = {"Authorization": "Bearer sk-test"}
            url = f"{self.url}/chat/completions"
            reply = requests.post(url, json=body, headers=headers, stream=True, timeout=GIVE_UP_S)
            return iter(list(reply.iter_lines()))

    @pytest.fixture(params=[True, False], ids=["pool", "rollback"])
    def deepseek(self, request: Any, sandbox: Any, settings: Settings) -> AsyncDeepSeekClient:
        settings = replace(settings, use_async=request.param, max_attempts=3)
        return AsyncDeepSeekClient(client=self.Theirs(sandbox.url), settings=settings)

    async def test_a_chat_that_streams(self, deepseek):
        """A `chat` that gives a stream is read by its path; nobody judges its chunks."""
        lines = [line async for line in asyncify(deepseek).chat("hi")]
        assert lines[-2:] == [b"data: [DONE]", b""]

    async def test_a_stream_is_not_tried_again(self, deepseek):
        """A failure that a call would be tried again for ends a stream: its first chunks were read already."""
        begun: list[str] = []

        def talk() -> Iterator[str]:
            begun.append("again")
            yield "one"
            raise UpstreamUnavailable("down")

        deepseek.talk = talk
        chunks = aiter(asyncify(deepseek).talk())
        assert await anext(chunks) == "one"
        with pytest.raises(UpstreamUnavailable):
            await anext(chunks)
        assert begun == ["again"]

    async def test_a_chat_that_streams_is_not_awaited(self, deepseek, sandbox):
        """`chat_async` of one says how to write it, whatever `errors` says, and asks the API once."""
        with pytest.raises(TypeError, match=r"async for chunk in asyncify\(client\).chat"):
            await deepseek.chat_async("hi")
        assert sandbox.stats()["requests"] == 1


def test_a_path_stays_a_path(path):
    """asyncify of what it has made is that."""
    assert asyncify(path) is path


async def test_settings_are_read_at_the_first_call(client, monkeypatch):
    """Without settings of its own a path has those of the environment at its first call."""
    path = asyncify(client)
    monkeypatch.setenv("USE_ASYNC_DEEPSEEK", "0")
    assert await path.chat.completions.create("hi") == "hi 60"
    assert client.threads == [threading.current_thread().name] * 2
    given = asyncify(Client(), settings=Settings())
    assert [part async for part in given.chat.completions.create("hi", stream=True)] == ["hi", "60"]
    assert given.__wrapped__.threads[0].startswith("llm-worker")
