"""What DeepSeek(app, client=...) makes of a function, and of what is async already."""

import functools
import threading

import pytest
from flask import Flask

from deepseek_client import asyncify
from deepseek_client.flask import DeepSeek


def where(prompt):
    """Where it runs."""
    return prompt, threading.get_ident()


@pytest.mark.parametrize("is_async", [True, False], ids=["pool", "rollback"])
@pytest.mark.parametrize(
    "client",
    [where, asyncify(where), functools.partial(where)],
    ids=["function", "asyncified", "partial"],
)
def test_function(client, is_async):
    """`llm.client` of a function is that function, under the settings of the application."""
    app = Flask("theirs")
    app.config["USE_ASYNC_DEEPSEEK"] = is_async
    llm = DeepSeek(app, client=client)
    with app.app_context():
        prompt, thread = llm.wait(llm.client("x"))
    assert (prompt, thread != threading.get_ident()) == ("x", is_async)


def test_generator_function():
    """`llm.stream` reads what a generator function makes."""

    def letters(text):
        yield from text

    app = Flask("theirs")
    llm = DeepSeek(app, client=letters)
    with app.test_request_context():
        assert list(llm.stream(llm.client("abc"))) == ["a", "b", "c"]


def test_client_that_is_async_already():
    """Its coroutine is refused in one sentence, and is not left behind unawaited."""

    class Async:
        async def ask(self):
            raise AssertionError

    llm = DeepSeek(Flask("theirs"), client=Async())
    with pytest.raises(TypeError, match="ask is async already: await it as it is"):
        llm.wait(llm.client.ask_async())


def test_wrapper_around_an_asyncified_function():
    """It is somebody's own async function, which nothing may skip: it is refused, as any that is async already."""
    inner = asyncify(where)

    @functools.wraps(inner)
    async def guarded(prompt):
        return await inner(prompt)

    with pytest.raises(TypeError, match="this one is async already"):
        DeepSeek(Flask("theirs"), client=guarded)


def test_call_without_asyncify():
    """What a client's own path gave is refused by wait, with the word that is missing."""
    llm = DeepSeek(Flask("theirs"), client=object())
    with pytest.raises(TypeError, match=r"got a dict: .* client=asyncify\(...\)"):
        llm.wait({})
