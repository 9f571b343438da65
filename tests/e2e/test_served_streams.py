"""Streams of OpenAI's client through real servers, to browsers that read them, and to browsers that go."""

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import requests
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import running

ROOT = Path(__file__).parents[2]
PATIENCE_S = 6
GUNICORN = 'exec "$0" -m gunicorn streaming:app -b 127.0.0.1:$PORT --workers 1'
SERVERS = {
    "gunicorn_sync": GUNICORN,
    "gunicorn_gthread": f"{GUNICORN} --threads 4",
    "gunicorn_gevent": f"{GUNICORN} --worker-class gevent",
    "flask_run": 'exec "$0" -m flask --app streaming run -p $PORT',
    "waitress": 'exec "$0" -m waitress --listen 127.0.0.1:$PORT streaming:app',
}
CHUNK = {
    "id": "1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "deepseek-flash",
    "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}],
}


@pytest.fixture
def start(serving, tmp_path):
    """Starts the application over an upstream, in a directory of its own."""

    def begin(name, url, **env):
        path = f"{ROOT}{os.pathsep}{ROOT}/tests/e2e"
        command = ["sh", "-c", SERVERS[name], sys.executable]
        return serving(command, cwd=tmp_path, UPSTREAM=url, PYTHONPATH=path, LLM_MAX_WORKERS="2", **env)

    return begin


@pytest.fixture
def endless(serve):
    """An upstream whose streams never end; says when its client has gone."""
    gone, over = threading.Event(), threading.Event()

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            while not over.wait(0.01):
                handler.wfile.write(f"data: {json.dumps(CHUNK)}\n\n".encode())
        except OSError:
            gone.set()

    upstream = serve(answer)
    upstream.gone = gone
    yield upstream
    over.set()


@pytest.fixture
def silent(serve):
    """An upstream that sends one chunk and nothing after it; says when its client has gone."""
    gone = threading.Event()

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(f"data: {json.dumps(CHUNK)}\n\n".encode())
        with contextlib.suppress(ConnectionError):
            while handler.rfile.read(1):
                pass
        gone.set()

    upstream = serve(answer)
    upstream.gone = gone
    return upstream


def words_of(text):
    """What the events say, and the last of them."""
    *data, last = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return "".join(json.loads(chunk)["choices"][0]["delta"]["content"] or "" for chunk in data), last


def opened(server, path="/stream"):
    """The answer to a request for a stream, of which nothing is read yet."""
    return requests.post(f"{server.url}{path}", json={"prompt": "甲"}, stream=True, timeout=GIVE_UP_S)


@pytest.mark.parametrize("name", SERVERS)
def test_a_stream_arrives(start, name):
    """The events of a stream reach the browser whole, and its call is one line of the log."""
    with running() as sandbox, start(name, sandbox.url) as server:
        answer = server.post("/stream", {"prompt": "甲"})
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert words_of(answer.content.decode()) == ("沙盒已收到：「甲」", "[DONE]")
        assert "deepseek_first_chunk_seconds_count" in server.get("/metrics").text


@pytest.mark.parametrize("name", SERVERS)
def test_the_first_chunk_does_not_wait_for_the_last(start, endless, name):
    """Chunks reach the browser while the upstream goes on."""
    with start(name, endless.url) as server, opened(server) as answer:
        line = next(line for line in answer.iter_lines(chunk_size=1) if line)
        assert json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == "word "
        assert not endless.gone.is_set()


@pytest.mark.parametrize("name", SERVERS)
def test_a_browser_that_goes_stops_the_model(start, endless, eventually, name):
    """When the browser closes its connection in the middle the upstream loses its client, and the worker is free."""
    with start(name, endless.url) as server:
        answer = opened(server)
        assert next(answer.iter_content(10))
        answer.close()
        assert endless.gone.wait(GIVE_UP_S)
        eventually(lambda: server.get("/busy").json()["busy"] == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells that the other end has closed")
@pytest.mark.parametrize("path", ["/stream", "/lines"])
@pytest.mark.parametrize("name", ["gunicorn_sync", "gunicorn_gthread", "gunicorn_gevent", "flask_run"])
def test_a_browser_that_goes_while_the_model_is_silent(start, silent, eventually, name, path):
    """A browser that goes when there is nothing to send stops the model, too, where the server shows its socket."""
    with start(name, silent.url, LLM_DEADLINE_S="600") as server:
        answer = opened(server, path)
        text = b""
        for piece in answer.iter_content(10):  # which closes the connection when it is collected
            text += piece
            if text.endswith(b"\n\n"):  # all that there is to send
                answer.close()
                break
        assert silent.gone.wait(GIVE_UP_S)
        eventually(lambda: server.get("/busy").json()["busy"] == 0)


@pytest.mark.parametrize("name", ["gunicorn_sync", "gunicorn_gthread"])
def test_a_refusal_has_its_status(start, name):
    """What fails before the first chunk is no stream: the client's own exception leaves the view."""
    with running() as sandbox, start(name, sandbox.url) as server:
        sandbox.script([{"fault": "status", "status": 401}])
        assert server.post("/stream", {"prompt": "甲"}).status_code == 500
        assert "openai.AuthenticationError" in server.output.read_text()


@pytest.mark.parametrize("name", ["gunicorn_sync", "gunicorn_gthread"])
def test_a_stream_that_stalls_ends_at_its_deadline(start, name):
    """An upstream that falls silent in the middle costs its browser the deadline, and an event says so."""
    with running() as sandbox, start(name, sandbox.url, LLM_DEADLINE_S="2") as server:
        sandbox.script([{"fault": "hang_in_body"}])
        answer = server.post("/stream", {"prompt": "甲"})
        assert "event: error\n" in answer.text
        *_, data = [line for line in answer.text.split("\n") if line.startswith("data: ")]
        assert json.loads(data.removeprefix("data: "))["code"] == "deadline_exceeded"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
@pytest.mark.parametrize("name", ["gunicorn_sync", "gunicorn_gthread"])
def test_a_stop_while_a_stream_stalls(start, tmp_path, name, number):
    """A stream that stalls ends with `closing`, INT at once and TERM in time for the worker to leave as it always does.

    Its browser keeps the connection, which gthread keeps for two seconds, too.
    """
    patience = {"GUNICORN_CMD_ARGS": f"--graceful-timeout {PATIENCE_S}", "LEFT": str(tmp_path / "left")}
    with running() as sandbox, start(name, sandbox.url, LLM_DEADLINE_S="600", **patience) as server:
        sandbox.script([{"fault": "hang_in_body"}])
        with requests.Session() as http:
            answer = http.post(f"{server.url}/stream", json={"prompt": "甲"}, stream=True, timeout=GIVE_UP_S)
            sandbox.wait_until(lambda stats: stats["in_flight"] == 1)
            server.process.send_signal(number)
            *_, data = [line for line in answer.text.split("\n") if line.startswith("data: ")]
            assert json.loads(data.removeprefix("data: "))["code"] == "closing"
            assert server.process.wait(GIVE_UP_S) == 0
        assert (tmp_path / "left").exists()


def test_the_rollback_streams(start, endless):
    """With USE_ASYNC_DEEPSEEK=0 a stream arrives, and a browser that goes stops the model all the same."""
    with running() as sandbox, start("gunicorn_gthread", sandbox.url, USE_ASYNC_DEEPSEEK="0") as server:
        answer = server.post("/stream", {"prompt": "甲"})
        assert words_of(answer.content.decode()) == ("沙盒已收到：「甲」", "[DONE]")
    with start("gunicorn_gthread", endless.url, USE_ASYNC_DEEPSEEK="0") as server:
        answer = opened(server)
        assert next(answer.iter_content(10))
        answer.close()
        assert endless.gone.wait(GIVE_UP_S)
