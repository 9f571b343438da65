"""Requests that wait in the kernel before a real gunicorn takes them, and those whose callers leave meanwhile."""

import json
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.clients import counted
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import running

GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "webapp/gunicorn.conf.py", "webapp.wsgi:app"]
WORKERS = 2
ABANDONED = 200

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="other systems do not tell how long a request waited"
)


@pytest.fixture
def sandbox():
    """One of each test, which counts from 0."""
    with running() as api:
        yield api


def start(serving, sandbox, threads="1", **env):
    upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url, "LLM_MAX_ATTEMPTS": "1"}
    return serving(GUNICORN, WEB_CONCURRENCY=str(WORKERS), WEB_THREADS=threads, **upstream, **env)


def chat(server):
    return server.post("/api/llm/chat", {"prompt": "x"})


def test_queue_before_the_workers(serving, sandbox):
    """What has waited in the kernel for longer than it may is a 503 with Retry-After, unsent; the wait is a metric."""
    sandbox.script([{"fault": "ok", "latency_ms": 2000, "times": 100}])
    with start(serving, sandbox, LLM_DEADLINE_S="5") as server, ThreadPoolExecutor(30) as threads:
        answers = [asked.result(GIVE_UP_S) for asked in [threads.submit(chat, server) for _ in range(30)]]
        refused = [answer for answer in answers if answer.status_code == 503]
        # Without it, all 30 would be sent, the last ones after 30 s. On a busy machine fewer are sent.
        assert len(refused) >= 30 - 3 * WORKERS
        assert sandbox.stats()["requests"] == 30 - len(refused)
        for answer in refused:
            assert (answer.headers["Retry-After"], answer.json()["code"]) == ("1", "overloaded")
        assert counted(server, "http_queued_seconds_sum") > len(refused) * 2.0
        assert server.get("/ready").status_code == 200


@pytest.mark.parametrize("threads", ["1", "4"], ids=["sync", "gthread"])
def test_callers_that_leave(serving, sandbox, eventually, threads):
    """For the requests of callers that have left no call is made, each is one line of the log, and probes answer."""
    sandbox.script([{"fault": "ok", "latency_ms": 3000, "times": 2 * ABANDONED}])
    body = json.dumps({"prompt": "x"}).encode()
    head = f"POST /api/llm/chat HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    taken = WORKERS * int(threads)
    with start(serving, sandbox, threads) as server:
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(taken + ABANDONED)]
        for connection in connections:
            connection.sendall(head + body)
        sandbox.wait_until(lambda stats: stats["in_flight"] >= WORKERS)
        for connection in connections:
            connection.close()
        assert server.get("/ready").status_code == 200
        # A call that was about to be made may still be made.
        eventually(
            lambda: (
                counted(server, "http_requests_total", status="499") + sandbox.stats()["requests"]
                == taken + ABANDONED
            )
        )
        made = sandbox.stats()["requests"]
        assert made <= taken
        left = taken + ABANDONED - made
        assert counted(server, "deepseek_errors_total", code="caller_left") == left
        text = server.output.read_text()
        assert len(re.findall("outcome=caller_left", text)) == left
        assert "Traceback" not in text
