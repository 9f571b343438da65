"""A file changes under `--reload` while a call is in flight."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.patience import GIVE_UP_S
from support.serving import reply

ROOT = Path(__file__).parents[2]
COMPLETION = b'{"choices": [{"message": {"content": "late"}, "finish_reason": "stop"}]}'

IN_A_SHELL = ["sh", "-c"]
WATCH = "--reload --reload-engine poll --reload-extra-file watched.txt"
GUNICORN = f'exec "$0" -m gunicorn theirs:app -b 127.0.0.1:$PORT {WATCH} --graceful-timeout 90 --timeout 90'
FLASK = 'exec "$0" -m flask --app theirs run -p $PORT --reload --extra-files watched.txt'


class Upstream:
    """An API that answers when it may."""

    def __init__(self, serve):
        self.asked, self.may_answer = threading.Event(), threading.Event()
        self.url = serve(self._answer).url

    def _answer(self, handler):
        self.asked.set()
        self.may_answer.wait(3 * GIVE_UP_S)
        reply(handler, body=COMPLETION, Content_Type="application/json")


@pytest.fixture
def upstream(serve):
    api = Upstream(serve)
    yield api
    api.may_answer.set()


@pytest.fixture
def start(serving, upstream, tmp_path):
    """Starts their application in a directory whose file `watched.txt` it is reloaded for."""
    (tmp_path / "watched.txt").touch()
    path = f"{ROOT}{os.pathsep}{ROOT}/tests/e2e"
    env = {"UPSTREAM": upstream.url, "PYTHONPATH": path, "LLM_DEADLINE_S": "120", "LLM_READ_TIMEOUT_S": "120"}
    return lambda command: serving([*IN_A_SHELL, command, sys.executable], cwd=tmp_path, **env)


def change_until(fact, file, eventually):
    """Changes the file until the server takes notice: it has to have seen it once before."""
    moments = iter(range(1, 1000))

    def change():
        moment = file.stat().st_mtime + next(moments)
        os.utime(file, (moment, moment))
        return fact()

    eventually(change)


@pytest.mark.parametrize("options", ["--workers 1", "--workers 1 --threads 4"], ids=["sync", "gthread"])
def test_gunicorn(start, upstream, tmp_path, eventually, options):
    """The call that is in flight ends well, as under gunicorn without us, and a new worker takes over."""
    with start(f"{GUNICORN} {options}") as server, ThreadPoolExecutor(1) as threads:
        old = set(server.processes()) - {server.pid}
        call = threads.submit(server.post, "/chat", {"prompt": "x"})
        assert upstream.asked.wait(GIVE_UP_S)
        said = server.output.read_text
        change_until(lambda: "Worker reloading" in said(), tmp_path / "watched.txt", eventually)
        assert not call.done()
        upstream.may_answer.set()
        assert call.result(GIVE_UP_S).json() == {"text": "late"}
        eventually(lambda: not old & set(server.processes()))
        assert server.answers()


@pytest.mark.parametrize("path", ["/chat", "/deaf"], ids=["call", "call_that_nothing_reaches"])
def test_flask(start, upstream, tmp_path, eventually, path):
    """Flask's own reloader starts the application again; a call in flight is answered `closing`, not cut."""
    with start(FLASK) as server, ThreadPoolExecutor(1) as threads:
        old = set(server.processes()) - {server.pid}
        call = threads.submit(server.post, path, {"prompt": "x"})
        eventually(lambda: upstream.asked.is_set() or "deaf" in server.output.read_text())
        change_until(lambda: not old & set(server.processes()), tmp_path / "watched.txt", eventually)
        assert call.result(GIVE_UP_S).json()["code"] == "closing"
        eventually(server.answers)
