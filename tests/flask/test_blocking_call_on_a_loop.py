"""A blocking call in an async view stalls all async views of its process: the log says so."""

import asyncio
from types import SimpleNamespace

import pytest

from deepseek_client import AsyncDeepSeekClient, Settings

WARNING = "chat blocks the event loop of its thread, and whatever else runs there: await chat_async instead"


@pytest.fixture
def warnings(caplog):
    """What the client has warned of."""
    return lambda: [
        record.getMessage() for record in caplog.records if record.name == "deepseek_client.deepseek"
    ]


def client(*, use_async=True):
    theirs = SimpleNamespace(chat=lambda prompt: {"text": prompt})
    return AsyncDeepSeekClient(client=theirs, settings=Settings(use_async=use_async))


def test_it_is_said_once(warnings):
    """The first blocking call on an event loop is named, with what to write; each one answers as ever."""
    ours = client()

    async def view():
        return [ours.chat("a"), ours.chat("b"), await ours.chat_async("c")]

    assert asyncio.run(view()) == [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    assert warnings() == [WARNING]


def test_nothing_is_said_where_nothing_is_stalled(warnings):
    """In a plain thread nothing waits for it, and in the rollback every call blocks."""
    assert client().chat("a") == {"text": "a"}
    rolled_back = client(use_async=False)

    async def view():
        return rolled_back.chat("b")

    assert asyncio.run(view()) == {"text": "b"}
    assert warnings() == []
