"""How gunicorn's workers leave: what was accepted is answered, and nobody stays although the API hangs."""

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import SandboxConfig, running

GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "webapp/gunicorn.conf.py"]
APP = "webapp.wsgi:app"
PATIENCE_S = 3
GONE_S = PATIENCE_S + 12
"""Long on a busy machine, and far below LLM_DEADLINE_S, for which a call would hold its worker."""
KINDS = {"sync": {"WEB_CONCURRENCY": "2"}, "gthread": {"WEB_CONCURRENCY": "1", "WEB_THREADS": "2"}}
over_kinds = pytest.mark.parametrize("kind", KINDS)

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")

# An application with a call that no abort reaches.
DEAF = """
import threading
from types import SimpleNamespace
from deepseek_client import AsyncFacade
from webapp.wsgi import app

begun = threading.Event()
client = AsyncFacade(SimpleNamespace(wait=lambda: (begun.set(), threading.Event().wait(600))))

@app.get("/deaf")
async def deaf():
    await client.wait_async()

@app.get("/begun")
def has_begun():
    begun.wait(5)
    return {}
"""


# A configuration of gunicorn whose first worker is told to end before it does anything.
TOLD_AT_ITS_FORK = """
import os, signal
from pathlib import Path

exec(Path("webapp/gunicorn.conf.py").read_text())
fork, forked = os.fork, []

def fork_and_tell():
    is_first = not forked
    forked.append(None)
    pid = fork()
    if is_first and not pid:
        os.kill(os.getpid(), signal.SIGTERM)
    elif is_first:
        Path({told!r}).write_text(str(pid))
    return pid

os.fork = fork_and_tell
"""


@pytest.fixture
def start(serving):
    """Starts gunicorn over a sandbox."""

    def begin(sandbox, kind, *options, app=APP, **env):
        upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url, "LLM_MAX_ATTEMPTS": "1"}
        return serving([*GUNICORN, *options, app], **{**upstream, **KINDS[kind], **env})

    return begin


def workers_of(server):
    """The pids of the workers that live."""
    return set(server.processes()) - {server.pid}


class Load:
    """Callers that ask for one answer after the other until they are told to stop, or until nobody listens."""

    def __init__(self, server, callers):
        self.statuses = []
        self.errors = []
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(callers)]
        for thread in self._threads:
            thread.start()

    def _call(self):
        while not self._stop.is_set():
            try:
                answer = self._server.post("/api/llm/chat", {"prompt": "x"})
                self.statuses.append(answer.status_code)
            except requests.RequestException as error:
                self.errors.append(error)
                if self._server.process.poll() is not None:
                    return

    def end(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(GIVE_UP_S * 6)
            assert not thread.is_alive()


@contextmanager
def hanging(sandbox, server, calls):
    """That many calls are in flight and do not end; gives their answers to come."""
    sandbox.script([{"fault": "hang", "times": calls}])
    with ThreadPoolExecutor(calls) as threads:
        answers = [threads.submit(server.post, "/api/llm/chat", {"prompt": "x"}) for _ in range(calls)]
        sandbox.wait_until(lambda stats: stats["in_flight"] == calls)
        yield answers


def test_reload_under_load(start, eventually):
    """HUP, three times under load, fails no request; each time all workers are new in the end."""
    with running(SandboxConfig(port=0, latency_ms=20)) as sandbox, start(sandbox, "sync") as server:
        load = Load(server, callers=6)
        for _ in range(3):
            old = workers_of(server)
            served = len(load.statuses)
            eventually(lambda served=served: len(load.statuses) >= served + 20)
            os.kill(server.pid, signal.SIGHUP)
            eventually(lambda old=old: not old & workers_of(server) and len(workers_of(server)) == 2)
        load.end()
    assert load.errors == []
    assert set(load.statuses) == {200}


@over_kinds
def test_stop_under_load(start, kind, eventually):
    """TERM under load: each call that reached the API has its answer, and no process is left."""
    with running(SandboxConfig(port=0, latency_ms=50)) as sandbox, start(sandbox, kind) as server:
        load = Load(server, callers=6)
        eventually(lambda: len(load.statuses) >= 20)
        assert server.end(signal.SIGTERM) == 0
        assert server.processes() == {}
        load.end()
        assert load.statuses == [200] * sandbox.stats()["requests"]


def test_killed_worker_under_load(start, eventually):
    """A worker that is killed with -9 takes no more than its own request with it, and is replaced."""
    with running(SandboxConfig(port=0, latency_ms=20)) as sandbox, start(sandbox, "sync") as server:
        load = Load(server, callers=6)
        eventually(lambda: len(load.statuses) >= 20)
        killed = min(workers_of(server))
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: killed not in workers_of(server) and len(workers_of(server)) == 2)
        served = len(load.statuses)
        eventually(lambda: len(load.statuses) >= served + 20)
        load.end()
    assert len(load.errors) <= 1
    assert set(load.statuses) == {200}


@over_kinds
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=["HUP", "TERM"])
def test_every_call_hangs(start, kind, number, eventually):
    """Calls that would hang past the master's patience are answered 503 `closing`; the workers are gone in time."""
    options = ["--graceful-timeout", str(PATIENCE_S)]
    with (
        running() as sandbox,
        start(sandbox, kind, *options) as server,
        hanging(sandbox, server, 2) as answers,
    ):
        old = workers_of(server)
        os.kill(server.pid, number)
        eventually(lambda: not old & workers_of(server), GONE_S)
        told = [answer.result(GIVE_UP_S) for answer in answers]
    assert [(answer.status_code, answer.json()["code"]) for answer in told] == [(503, "closing")] * 2
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in told)


@over_kinds
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["INT", "QUIT"])
def test_quick_stop_while_calls_hang(start, kind, number, eventually):
    """INT to all (Ctrl-C) and QUIT answer the calls in flight `closing` at once, long before the grace is over."""
    with running() as sandbox, start(sandbox, kind) as server, hanging(sandbox, server, 2) as answers:
        os.killpg(server.pid, number)
        assert server.process.wait(GIVE_UP_S) == 0
        assert server.processes() == {}
        assert [answer.result(GIVE_UP_S).json()["code"] for answer in answers] == ["closing"] * 2


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM], ids=["INT", "QUIT", "TERM"]
)
@pytest.mark.parametrize(
    ("reply", "env"),
    [
        ({"fault": "hang"}, {"USE_ASYNC_DEEPSEEK": "0"}),
        ({"fault": "status", "status": 429, "headers": {"Retry-After": "20"}}, {"LLM_MAX_ATTEMPTS": "2"}),
    ],
    ids=["in_its_own_thread", "between_attempts"],
)
def test_calls_outside_of_the_pool(start, number, reply, env):
    """A blocking call, and one that waits for its next attempt, are answered too, and keep no worker."""
    options = ["--graceful-timeout", str(PATIENCE_S)]
    with (
        running() as sandbox,
        start(sandbox, "sync", *options, **env) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        sandbox.script([reply])
        call = threads.submit(server.post, "/api/llm/chat", {"prompt": "x"})
        is_waiting = reply["fault"] != "hang"
        sandbox.wait_until(lambda stats: stats["requests"] == 1 and stats["in_flight"] == 1 - is_waiting)
        os.kill(server.pid, number)
        assert server.process.wait(GONE_S) == 0
        assert server.processes() == {}
        # The signal may come just before the wait begins: then the failure is told as it is.
        assert call.result(GIVE_UP_S).json()["code"] in ("closing", "rate_limited")


def test_worker_is_told_at_its_fork(start, tmp_path, eventually):
    """A worker that is told to end before it has handlers of its own ends, and its master is told as ever."""
    told, configuration = tmp_path / "told", tmp_path / "told_at_fork.py"
    configuration.write_text(TOLD_AT_ITS_FORK.format(told=str(told)))
    with running() as sandbox, start(sandbox, "sync", "-c", str(configuration)) as server:
        pid = int(told.read_text())
        eventually(lambda: pid not in workers_of(server) and len(workers_of(server)) == 2)
        assert server.end() == 0
        assert server.processes() == {}


def test_worker_at_its_last_request(start, eventually):
    """A worker that has served --max-requests ends although another call of it hangs, which gets its answer first."""
    options = ["--max-requests", "3"]
    env = {"LLM_DEADLINE_S": "2"}
    with (
        running() as sandbox,
        start(sandbox, "gthread", *options, **env) as server,
        hanging(sandbox, server, 1) as (hung,),
    ):
        (old,) = workers_of(server)
        eventually(lambda: server.answers() and old not in workers_of(server))
        assert hung.result(GIVE_UP_S).json()["code"] == "deadline_exceeded"


def test_thread_that_no_abort_reaches(start, tmp_path, eventually):
    """A thread that hangs in code that is not ours keeps no old worker alive after a reload."""
    (tmp_path / "deaf.py").write_text(DEAF)
    options = ["--graceful-timeout", str(PATIENCE_S), "--pythonpath", str(tmp_path)]
    with (
        running() as sandbox,
        start(sandbox, "gthread", *options, app="deaf:app") as server,
        ThreadPoolExecutor(1) as threads,
    ):
        call = threads.submit(server.get, "/deaf")
        assert server.get("/begun").ok
        old = workers_of(server)
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: not old & workers_of(server), GONE_S)
        assert call.result(GIVE_UP_S).json()["code"] == "closing"
