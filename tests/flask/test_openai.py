"""OpenAI's own client, wrapped in one line, in a Flask application over the sandbox."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from flask import Flask, Response, request
from support.blocking import counts, until

from deepseek_client import DeadlineExceeded, WorkerPool, asyncify, call_options, per_thread
from deepseek_client.events import CallFinished, subscribe, unsubscribe
from deepseek_client.flask import DeepSeek, sse

ASKED = {
    "model": "deepseek-flash",
    "messages": [{"role": "user", "content": "甲"}],
    "extra_body": {"thinking": {"type": "disabled"}},
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ANSWER = "沙盒已收到：「甲」"


@pytest.fixture
def new_client(sandbox: Any) -> Iterator[Callable[[], openai.OpenAI]]:
    """Makes clients, and closes their connections with the test."""
    made: list[openai.OpenAI] = []

    def make() -> openai.OpenAI:
        made.append(openai.OpenAI(api_key="sk-test-key", base_url=sandbox.url, max_retries=0))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def llm(new_client: Callable[[], openai.OpenAI]) -> DeepSeek:
    return DeepSeek(client=asyncify(new_client()))


@pytest.fixture
def app(llm: DeepSeek, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """An application of four views."""
    monkeypatch.chdir(tmp_path)
    app = Flask("theirs")
    llm.init_app(app)

    @app.post("/chat")
    def chat() -> dict[str, Any]:
        reply = llm.wait(llm.client.chat.completions.create(**ASKED))
        return {"text": reply.choices[0].message.content}

    @app.post("/async")
    async def chat_async() -> dict[str, Any]:
        replies = await asyncio.gather(*(llm.client.chat.completions.create(**ASKED) for _ in range(3)))
        return {"text": [reply.choices[0].message.content for reply in replies]}

    @app.post("/stream")
    def stream() -> Response:
        call = llm.client.chat.completions.create(**ASKED, stream=True)
        return Response(sse(llm.stream(call)), mimetype="text/event-stream")

    @app.post("/tools")
    def tools() -> dict[str, Any]:
        message = (
            llm.wait(llm.client.chat.completions.create(**ASKED, tools=[TOOL], tool_choice="required"))
            .choices[0]
            .message
        )
        [call] = message.tool_calls
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        messages = [*ASKED["messages"], message, result]
        reply = llm.wait(llm.client.chat.completions.create(**{**ASKED, "messages": messages}))
        return {"tool": call.function.name, "text": reply.choices[0].message.content}

    @app.errorhandler(openai.RateLimitError)
    def busy(error: openai.RateLimitError) -> tuple[dict[str, Any], int]:
        return {"theirs": error.status_code, "path": request.path}, 429

    return app


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/chat", {"text": ANSWER}),
        ("/async", {"text": [ANSWER] * 3}),
        ("/tools", {"tool": "weather", "text": ANSWER}),
    ],
    ids=["plain", "async", "tools"],
)
def test_it_answers(app, path, answer):
    """A plain view, an async view with three calls at once, and a round of tools have what OpenAI's client gives."""
    assert app.test_client().post(path).get_json() == answer


def test_it_streams(app):
    """The events of a stream are the chunks' own JSON."""
    *events, last, _ = app.test_client().post("/stream").text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == ANSWER
    assert last == "data: [DONE]"


@pytest.mark.parametrize("path", ["/chat", "/async", "/stream"])
def test_its_exceptions_stay_its_own(app, sandbox, path):
    """A handler for an exception of OpenAI's client gets it, from every kind of view."""
    sandbox.script([{"fault": "status", "status": 429, "times": 3}])
    answer = app.test_client().post(path)
    assert (answer.status_code, answer.get_json()) == (429, {"theirs": 429, "path": path})


def test_its_stream_managers_are_iterated(llm, app):
    """`chat.completions.stream`, which is a context manager, gives its events."""
    with app.app_context():
        kinds = [event.type for event in llm.stream(llm.client.chat.completions.stream(**ASKED))]
    assert kinds[0] == "chunk"
    assert kinds[-1] == "content.done"


def test_its_signature_shows_through(new_client):
    """An editor sees the parameters, the names and the texts of OpenAI's client."""
    client = new_client()
    path = asyncify(client)
    assert inspect.signature(path.chat.completions.create) == inspect.signature(
        client.chat.completions.create
    )
    assert {"create", "stream", "with_raw_response"} <= set(dir(path.chat.completions))
    assert inspect.getdoc(path.models.list) == inspect.getdoc(client.models.list)


async def test_its_options_and_raw_replies(new_client):
    """Ways through `with_options` and `with_raw_response` lead where they lead without asyncify."""
    client = asyncify(new_client())
    raw = await client.with_options(timeout=9).chat.completions.with_raw_response.create(**ASKED)
    assert raw.parse().choices[0].message.content == ANSWER


async def test_a_client_of_each_worker(new_client):
    """Over `per_thread` each worker has an OpenAI client of its own."""
    made: list[str] = []

    def factory() -> openai.OpenAI:
        made.append(threading.current_thread().name)
        return new_client()

    client = asyncify(per_thread(factory))
    reply = await client.chat.completions.create(**ASKED)
    assert reply.choices[0].message.content == ANSWER
    assert all(name.startswith("llm-worker") for name in made)


async def test_an_await_of_its_stream_leaves_no_connection(sandbox, new_client):
    """A stream that is awaited by mistake is closed: the API does not go on for nobody."""
    client = asyncify(new_client())
    sandbox.script([{"fault": "hang_in_body"}])
    with pytest.raises(TypeError, match="without `await`"):
        await client.chat.completions.create(**ASKED, stream=True)
    await asyncio.to_thread(sandbox.wait_until, lambda stats: stats["in_flight"] == 0, 20.0)


async def test_a_stream_that_stalls_frees_its_connection(sandbox, new_client):
    """At its deadline, or when its reader goes, a silent stream of OpenAI's client gives its thread and socket back."""
    pool = WorkerPool(workers=1, queue_limit=0)
    client = asyncify(new_client(), pool=pool)
    sandbox.script([{"fault": "hang_in_body", "times": 2}])
    with call_options(deadline_s=1), pytest.raises(DeadlineExceeded):
        await collect(client.chat.completions.create(**ASKED, stream=True))
    await until(lambda: counts(pool) == (0, 0))
    async with client.chat.completions.create(**ASKED, stream=True) as chunks:
        await anext(chunks)
    await until(lambda: counts(pool) == (0, 0))
    await asyncio.to_thread(sandbox.wait_until, lambda stats: stats["in_flight"] == 0, 20.0)
    pool.close()


async def collect(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


async def test_a_stream_is_reported_by_its_path(new_client):
    """The report of a stream has its path and its first chunk's time."""
    seen: list[Any] = []

    def note(event: object) -> None:
        if isinstance(event, CallFinished):
            seen.append((event.method, event.error, event.first_chunk_s is not None))

    client = asyncify(new_client())
    subscribe(note)
    try:
        async for _ in client.chat.completions.create(**ASKED, stream=True):
            pass
    finally:
        unsubscribe(note)
    assert seen == [("chat.completions.create", None, True)]
