"""An application of somebody else's, under the servers that people use, without a line of configuration for us."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import running

ROOT = Path(__file__).parents[2]
PATIENCE_S = 3
"""Of gunicorn with a worker at SIGTERM; far below LLM_DEADLINE_S, for which a call would hold it."""

# The port is in the environment.
IN_A_SHELL = ["sh", "-c"]
GUNICORN = f'exec "$0" -m gunicorn theirs:app -b 127.0.0.1:$PORT --graceful-timeout {PATIENCE_S}'
SERVERS = {
    "gunicorn_sync": f"{GUNICORN} --workers 1",
    "gunicorn_gthread": f"{GUNICORN} --workers 1 --threads 4",
    "gunicorn_sync_preload": f"{GUNICORN} --workers 1 --preload",
    "gunicorn_gthread_preload": f"{GUNICORN} --workers 1 --threads 4 --preload",
    "gunicorn_gevent": f"{GUNICORN} --workers 1 --worker-class gevent",
    "flask_run": 'exec "$0" -m flask --app theirs run -p $PORT',
    "waitress": 'exec "$0" -m waitress --listen 127.0.0.1:$PORT theirs:app',
    "socketio": 'exec "$0" tests/e2e/theirs.py $PORT',
}
ENDS_IDLE = ("gunicorn_sync", "gunicorn_gthread", "flask_run", "waitress")
OF_TWO_WORKERS = {"gunicorn_two": f"{GUNICORN} --workers 2"}
over_servers = pytest.mark.parametrize("name", SERVERS)

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")


@pytest.fixture
def start(serving, tmp_path):
    """Starts their application over a sandbox, in a directory of its own."""

    def begin(name, sandbox, **env):
        command = [
            *IN_A_SHELL,
            {**SERVERS, **OF_TWO_WORKERS}[name].replace("tests/e2e", f"{ROOT}/tests/e2e"),
            sys.executable,
        ]
        path = f"{ROOT}{os.pathsep}{ROOT}/tests/e2e"
        return serving(
            command, cwd=tmp_path, UPSTREAM=sandbox.url, PYTHONPATH=path, LLM_MAX_ATTEMPTS="1", **env
        )

    return begin


@contextmanager
def hanging(sandbox, server, path="/chat"):
    """One call is in flight and does not end; gives its answer to come."""
    sandbox.script([{"fault": "hang"}])
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(server.post, path, {"prompt": "x"})
        sandbox.wait_until(lambda stats: stats["in_flight"] == 1)
        yield answer


@over_servers
def test_answers(start, name):
    """A call is answered, bears the request's id, is counted, and leaves its line where nobody configured logging.

    Without a call in flight the interpreter then ends as it does without us: other libraries do their last work.
    """
    with running() as sandbox, start(name, sandbox) as server:
        for path in ("/chat", "/restful"):
            answer = server.ask("POST", path, json={"prompt": "甲"}, headers={"X-Request-ID": "r-1"})
            assert (answer.status_code, answer.json()) == (200, {"text": "沙盒已收到：「甲」"})
            assert answer.headers["X-Request-ID"] == "r-1"
        assert sandbox.stats()["last_request_headers"]["X-Request-ID"] == "r-1"
        assert 'deepseek_requests_total{method="chat",mode="async"} 2.0' in server.get("/metrics").text
        lines = [line for line in server.output.read_text().splitlines() if "deepseek_client.calls" in line]
        assert len(lines) == 2
        assert all("method=chat mode=async outcome=ok" in line for line in lines)
        # waitress configures logging in its own format.
        assert all("[r-1]" in line for line in lines) or name == "waitress"
        if name in ENDS_IDLE:
            assert server.end(signal.SIGINT) == 0
            assert "flushed" in server.output.read_text()
            assert server.processes() == {}


@over_servers
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_stop_while_a_call_hangs(start, name, number):
    """The server ends while the API still hangs; the call's request is answered `closing` before that."""
    path = "/restful" if name == "waitress" else "/chat"
    with running() as sandbox, start(name, sandbox) as server:
        assert server.post(path, {"prompt": "x"}).status_code == 200
        with hanging(sandbox, server, path) as answer:
            if number == signal.SIGINT:
                os.killpg(server.pid, number)  # as Ctrl-C does
            else:
                server.process.send_signal(number)
            code = server.process.wait(GIVE_UP_S + PATIENCE_S * name.startswith("gunicorn"))
            told = answer.result(GIVE_UP_S)
        assert (told.status_code, told.json()["code"]) == (503, "closing")
        assert int(told.headers["Retry-After"]) >= 1
        assert server.processes() == {}
        is_default = number == signal.SIGTERM and not name.startswith("gunicorn")
        assert code == (-signal.SIGTERM if is_default else 0)


def test_first_call_of_a_preloaded_worker(start):
    """A worker that was forked from a loaded application ends its very first call, too."""
    with (
        running() as sandbox,
        start("gunicorn_sync_preload", sandbox) as server,
        hanging(sandbox, server) as answer,
    ):
        os.killpg(server.pid, signal.SIGQUIT)
        assert server.process.wait(GIVE_UP_S) == 0
        assert answer.result(GIVE_UP_S).json()["code"] == "closing"


def test_quick_stop_waits_for_no_other_request(start, eventually):
    """A request of the application's own does not hold a quick stop of gunicorn, as it does not without us."""
    with running() as sandbox, start("gunicorn_sync", sandbox) as server, ThreadPoolExecutor(1) as threads:
        slow = threads.submit(server.get, "/slow")
        eventually(lambda: "slow" in server.output.read_text())
        os.killpg(server.pid, signal.SIGQUIT)
        assert server.process.wait(GIVE_UP_S) == 0
        assert slow.exception(GIVE_UP_S) or not slow.result().ok


def test_rollback(start):
    """With USE_ASYNC_DEEPSEEK=0 the same application makes each call in its request's own thread."""
    with running() as sandbox, start("gunicorn_gthread", sandbox, USE_ASYNC_DEEPSEEK="0") as server:
        assert server.post("/chat", {"prompt": "甲"}).json() == {"text": "沙盒已收到：「甲」"}
        assert 'deepseek_requests_total{method="chat",mode="sync"} 1.0' in server.get("/metrics").text


def test_metrics_over_workers(start):
    """Of two workers each is asked for the sum of both, although nobody named a directory for that."""
    with running() as sandbox, start("gunicorn_two", sandbox) as server, ThreadPoolExecutor(2) as threads:
        sandbox.script([{"fault": "hang", "times": 2}])
        # A sync worker has one call at a time: two in flight are one of each.
        calls = [threads.submit(server.post, "/chat", {"prompt": "x"}) for _ in range(2)]
        sandbox.wait_until(lambda stats: stats["in_flight"] == 2)
        sandbox.stop()
        assert [call.result().json()["code"] for call in calls] == ["connection_failed"] * 2
        for _ in range(4):
            assert 'deepseek_requests_total{method="chat",mode="async"} 2.0' in server.get("/metrics").text
