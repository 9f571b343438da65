"""A client's stream as the answer of a view."""

from __future__ import annotations

import contextvars
import json
import socket
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, Response, request
from support.patience import GIVE_UP_S
from werkzeug.test import EnvironBuilder

from deepseek_client import DeadlineExceeded, Overloaded, Settings, asyncify, events
from deepseek_client.flask import DeepSeek, extension, sse, streaming
from deepseek_client.wire.tcp import has_other_end_closed

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
CONFIG = {"LLM_MAX_WORKERS": 1, "LLM_QUEUE_LIMIT": 0}


class Theirs:
    """A client whose answers are streams of texts; it says what becomes of them."""

    api_key = "sk-of-the-client"

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.closed = threading.Event()
        self.answers = SimpleNamespace(words=self.words, fail=self.fail, ask=lambda text: text.upper())

    def words(self, text: str, times: int = 1) -> Iterator[str]:
        self.threads.append(threading.current_thread().name)
        try:
            for _ in range(times):
                yield from text.split()
        finally:
            self.closed.set()

    def fail(self, after: int, error: Exception) -> Iterator[str]:
        yield from ["part"] * after
        raise error


@pytest.fixture
def theirs() -> Theirs:
    return Theirs()


@pytest.fixture
def llm(theirs: Theirs) -> DeepSeek:
    return DeepSeek(client=asyncify(theirs))


@pytest.fixture
def app(llm: DeepSeek, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """Their application, in a directory without `.env`."""
    monkeypatch.chdir(tmp_path)
    app = Flask("theirs")
    app.config.update(CONFIG)
    llm.init_app(app)

    @app.get("/words")
    def words() -> Response:
        return Response(llm.stream(llm.client.answers.words(request.args["text"])), mimetype="text/plain")

    @app.get("/events")
    def as_events() -> Response:
        chunks = llm.stream(llm.client.answers.words(request.args["text"]))
        return Response(sse(chunks), mimetype="text/event-stream")

    return app


def test_a_stream_is_an_answer(app, theirs):
    """A view's answer is made of the chunks of a stream, which a worker has made."""
    answer = app.test_client().get("/words?text=one two three")
    assert (answer.status_code, answer.text) == (200, "onetwothree")
    assert theirs.threads[0].startswith("llm-worker")


def test_a_call_by_its_path_is_awaited_in_a_plain_view(app, llm):
    """`llm.wait` takes a call by its path, and an async view awaits it."""

    @app.get("/ask")
    def ask() -> str:
        return llm.wait(llm.client.answers.ask("hi"))

    @app.get("/async")
    async def ask_async() -> str:
        return await llm.client.answers.ask("hi")

    client = app.test_client()
    assert client.get("/ask").text == client.get("/async").text == "HI"


def test_the_applications_settings_hold(app, llm):
    """A client's paths have the settings of the application, unless they were made with some of their own."""
    assert llm.client._path_root.caller.settings.max_workers == 1
    own = DeepSeek(app, client=asyncify(Theirs(), settings=Settings(max_workers=7)))
    assert own.client._path_root.caller.settings.max_workers == 7


@pytest.mark.parametrize("use_async", ["1", "0"], ids=["pool", "rollback"])
def test_an_async_view_reads_a_stream(llm, theirs, tmp_path, monkeypatch, use_async):
    """An async view reads a stream by `async for`, whole or to the end of an `async with`, also in the rollback."""
    monkeypatch.chdir(tmp_path)
    app = Flask("async")
    app.config.update(CONFIG, USE_ASYNC_DEEPSEEK=use_async)
    llm.init_app(app)

    @app.get("/whole")
    async def whole() -> str:
        return "/".join([word async for word in llm.client.answers.words("one two")])

    @app.get("/part")
    async def part() -> str:
        async with llm.client.answers.words("one", 1_000_000_000) as words:
            async for word in words:
                return word
        raise AssertionError

    assert app.test_client().get("/whole").text == "one/two"
    theirs.closed.clear()
    assert app.test_client().get("/part").text == "one"
    assert theirs.closed.wait(GIVE_UP_S)


def test_events(app):
    """`sse` makes an event of each chunk, and says when it was the last."""
    answer = app.test_client().get("/events?text=one two")
    assert answer.text == "data: one\n\ndata: two\n\ndata: [DONE]\n\n"


def test_what_an_event_says():
    """Texts go out as they are, each of their lines as a field; models as their JSON; anything else as JSON."""
    model = SimpleNamespace(model_dump_json=lambda: '{"of": "a model"}')
    sent = list(sse(["two\nlines", "\r\nx\r", model, {"é": 1}]))
    assert sent == [
        "data: two\ndata: lines\n\n",
        "data: \ndata: x\ndata: \n\n",
        'data: {"of": "a model"}\n\n',
        'data: {"é": 1}\n\n',
        "data: [DONE]\n\n",
    ]


def test_a_failure_before_the_first_chunk_has_its_status(app, llm):
    """What fails before the first chunk is raised in the view: it is answered as any failed call."""

    @app.get("/fail")
    def fail() -> Response:
        return Response(sse(llm.stream(llm.client.answers.fail(0, Overloaded("full")))))

    answer = app.test_client().get("/fail")
    assert (answer.status_code, answer.get_json()["code"]) == (503, "overloaded")


def test_a_failure_in_the_middle_ends_the_answer(app, llm):
    """Without `sse` a failure in the middle is raised where the server reads, which cuts the answer."""
    with app.app_context():
        chunks = llm.stream(llm.client.answers.fail(1, LookupError("theirs")))
        assert next(chunks) == "part"
        with pytest.raises(LookupError, match="theirs"):
            next(chunks)
        assert list(chunks) == []


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            DeadlineExceeded("The call's time is over."),
            {"error": "The call's time is over.", "code": "deadline_exceeded"},
        ),
        (LookupError("a secret"), {"error": "The answer broke off.", "code": "unexpected"}),
    ],
    ids=["ours", "theirs"],
)
def test_a_failure_in_the_middle_is_an_event(app, llm, error, problem):
    """In events a failure is the last one, says what a failed call would answer, and nothing internal."""
    with app.app_context():
        part, failure = sse(llm.stream(llm.client.answers.fail(1, error)))
    kind, data, *_ = failure.split("\n")
    assert (part, kind) == ("data: part\n\n", "event: error")
    assert json.loads(data.removeprefix("data: ")) == problem


@pytest.mark.parametrize("wrap", [lambda chunks: chunks, sse], ids=["plain", "events"])
def test_a_browser_that_goes_ends_the_call(app, llm, theirs, wrap):
    """When the server closes an answer in its middle the worker closes the stream and is free."""
    seen = threading.Event()

    def note(event: object) -> None:
        if isinstance(event, events.CallFinished) and event.error == "cancelled":
            seen.set()

    events.subscribe(note)
    try:
        with app.app_context():
            answer = Response(wrap(llm.stream(llm.client.answers.words("a", 1_000_000_000))))
            assert next(iter(answer.response)) in ("a", "data: a\n\n")
            answer.close()
        assert theirs.closed.wait(GIVE_UP_S)
        assert seen.wait(GIVE_UP_S)
    finally:
        events.unsubscribe(note)
    with app.app_context():
        assert llm.wait(llm.client.answers.ask("the only worker is free")) == "THE ONLY WORKER IS FREE"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells that the other end has closed")
@pytest.mark.parametrize("name", ["gunicorn.socket", "werkzeug.socket"])
def test_a_browser_that_goes_in_a_silence_ends_the_call(app, llm, theirs, name):
    """While no chunk comes the browser's connection is looked at: when it is closed, so is the stream."""
    gate = threading.Event()
    theirs.wait = lambda: (gate.wait(GIVE_UP_S) for _ in range(2))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        browser = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        app.add_url_rule("/wait", view_func=lambda: list(llm.stream(llm.client.wait())))
        with ours:
            threading.Timer(0.1, browser.close).start()
            assert app.test_client().get("/wait", environ_base={name: ours}).get_json() == []
        assert not gate.is_set()
    gate.set()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells that the other end has closed")
def test_a_session_outlives_the_request_that_opened_it(app, llm, theirs, monkeypatch):
    """An event of Flask-SocketIO has the context of a request that is over: whether that caller left says nothing."""
    looked = threading.Event()

    def look(sock: Any) -> bool:
        looked.set()
        return has_other_end_closed(sock)

    monkeypatch.setattr(streaming, "has_other_end_closed", look)
    theirs.wait = lambda: (looked.wait(GIVE_UP_S) for _ in range(2))
    app.add_url_rule("/open", view_func=lambda: "opened")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        browser = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        with ours:
            environ = EnvironBuilder(environ_base={"gunicorn.socket": ours}, path="/open").get_environ()
            assert b"".join(app.wsgi_app(environ, lambda *_: None)) == b"opened"
            browser.close()
            with app.request_context(environ):
                assert list(llm.stream(llm.client.wait())) == [True, True]


def test_an_answer_that_nobody_reads_ends_the_call(app, llm, theirs):
    """An answer that is dropped before its first byte ends its call, too."""
    with app.app_context():
        Response(sse(llm.stream(llm.client.answers.words("a", 1_000_000_000))))
    assert theirs.closed.wait(GIVE_UP_S)


def test_a_full_pool_is_answered(app, llm):
    """A stream holds its worker: while it lasts another request is refused with 503."""
    with app.app_context():
        chunks = llm.stream(llm.client.answers.words("a", 1_000_000_000))
        assert app.test_client().get("/words?text=x").status_code == 503
        chunks.close()


def test_contextvars_of_the_view_are_there(app, llm, theirs):
    """The stream's code sees the view's contextvars and its request."""

    def tell() -> Iterator[str]:
        yield TENANT.get()
        yield request.path

    theirs.tell = tell

    @app.get("/tell")
    def view() -> Response:
        TENANT.set("acme")
        return Response(llm.stream(llm.client.tell()))

    assert app.test_client().get("/tell").text == "acme/tell"


def test_the_stream_of_another_client(tmp_path, monkeypatch):
    """A client with a `chat` has streams by `asyncify(llm.client)`."""
    monkeypatch.chdir(tmp_path)
    theirs = Theirs()
    theirs.chat = lambda prompt: {"text": prompt}
    app = Flask("theirs")
    llm = DeepSeek(app, client=theirs)
    with app.app_context():
        assert list(llm.stream(asyncify(llm.client).words("a b"))) == ["a", "b"]


def test_the_rollback_streams_in_the_requests_thread(app, llm, theirs, monkeypatch, tmp_path):
    """With USE_ASYNC_DEEPSEEK=0 the request's own thread makes each chunk when the server asks for it."""
    other = Flask("rolled back")
    other.config.update(CONFIG, USE_ASYNC_DEEPSEEK="0")
    llm.init_app(other)
    with other.app_context():
        assert list(sse(llm.stream(llm.client.answers.words("a b"))))[:2] == ["data: a\n\n", "data: b\n\n"]
        chunks = llm.stream(llm.client.answers.words("a", 1_000_000_000))
        assert next(chunks) == "a"
        theirs.closed.clear()
        chunks.close()
    assert theirs.closed.is_set()
    assert theirs.threads == [threading.current_thread().name] * 2


async def test_a_thread_with_an_event_loop_is_refused(app, llm):
    """In an async view `llm.stream` would block the loop that runs it: it says so, and makes no call."""
    with app.app_context(), pytest.raises(RuntimeError, match="use a plain view"):
        llm.stream(llm.client.answers.words("a"))


@pytest.mark.parametrize("what", ["text", iter(["a"])], ids=["text", "iterator"])
def test_what_is_no_call_is_refused(app, llm, what):
    """Anything but a call by its path is refused, and the sentence shows one."""
    with pytest.raises(TypeError, match=r"need a call by its path, such as llm.client"):
        llm.stream(what)


def test_what_gives_no_stream_is_refused(app, llm):
    """A call that gives a plain result says that it wants to be waited for."""
    with app.app_context(), pytest.raises(TypeError, match=r"answers\.ask gave no stream but a str"):
        llm.stream(llm.client.answers.ask("hi"))


def test_the_key_of_a_client_with_paths_is_known():
    """The log masks the key of a client that is reached by its paths."""
    assert extension._secrets_of(asyncify(Theirs())) == ["sk-of-the-client"]


def test_many_streams_in_threads(tmp_path, monkeypatch):
    """Ten threads read ten streams of a thousand chunks at once, each its own and whole."""
    monkeypatch.chdir(tmp_path)
    app = Flask("theirs")
    app.config.update(LLM_MAX_WORKERS=10)
    llm = DeepSeek(app, client=asyncify(Theirs()))
    results: dict[str, int] = {}

    def read(name: str) -> None:
        with app.app_context():
            chunks = llm.stream(llm.client.words(name, 1000))
        results[name] = sum(chunk == name for chunk in chunks)

    threads = [threading.Thread(target=read, args=(str(number),)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GIVE_UP_S)
    assert results == {str(number): 1000 for number in range(10)}
