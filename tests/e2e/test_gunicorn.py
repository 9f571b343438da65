import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.clients import counted
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import running

GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "webapp/gunicorn.conf.py"]
APP = "webapp.wsgi:app"

MODES = {
    "sync": ([], {"WEB_CONCURRENCY": "2", "WEB_THREADS": "1"}),
    "gthread": ([], {"WEB_CONCURRENCY": "1", "WEB_THREADS": "4"}),
    "sync_preload": (["--preload"], {"WEB_CONCURRENCY": "2", "WEB_THREADS": "1"}),
    "gthread_preload": (["--preload"], {"WEB_CONCURRENCY": "2", "WEB_THREADS": "4"}),
}
over_modes = pytest.mark.parametrize("mode", MODES)

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")


def start(serving, mode, sandbox, **env):
    """gunicorn over the sandbox."""
    options, of_mode = MODES[mode]
    upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}
    return serving([*GUNICORN, *options, APP], **upstream, **of_mode, **env)


@over_modes
def test_routes(serving, sandbox, mode):
    """Under each kind of worker chat, parse, batch and status keep their contracts, and TERM ends it all with 0."""
    with start(serving, mode, sandbox) as server:
        chat = server.post("/api/llm/chat", {"prompt": "你好"})
        assert (chat.status_code, chat.json()) == (200, {"text": "沙盒已收到：「你好」", "mode": "async"})

        laws = [{"code": "FORBIDDEN_ARTS", "enabled": True}]
        parse = server.post(
            "/api/llm/parse", {"utterance": "用禁术攻击妖狼", "context": {"laws": laws}}
        ).json()
        assert (parse["intent"], parse["allowed"], "禁术" in parse["reason"]) == ("attack", False, True)

        prompts = [f"测试提示词 {number}" for number in range(50)]
        batch = server.post("/api/llm/batch", {"requests": [{"prompt": prompt} for prompt in prompts]}).json()
        assert [result["text"] for result in batch["results"]] == [
            f"沙盒已收到：「{text}」" for text in prompts
        ]
        assert (batch["total"], batch["successful"], batch["failed"]) == (50, 50, 0)

        status = server.get("/api/llm/status").json()
        assert (status["status"], status["upstream"], status["async_enabled"]) == ("ok", "sandbox", True)
        assert status["pid"] in server.processes()
        assert status["pid"] != server.pid

        assert server.end(signal.SIGTERM) == 0
        assert server.processes() == {}


@pytest.mark.parametrize("mode", ["sync", "sync_preload"])
def test_metrics_are_summed(serving, mode):
    """/metrics counts the calls of both workers, whichever is asked, and goes on counting those of one that died."""
    with running() as sandbox, ThreadPoolExecutor(2) as threads, start(serving, mode, sandbox) as server:
        sandbox.script([{"fault": "hang", "times": 2}])
        # A sync worker has one call at a time: two in flight are one of each.
        chats = [threads.submit(server.post, "/api/llm/chat", {"prompt": "x"}) for _ in range(2)]
        sandbox.wait_until(lambda stats: stats["in_flight"] == 2)
        sandbox.stop()
        assert [chat.result().json()["code"] for chat in chats] == ["connection_failed"] * 2

        for _ in range(4):
            assert counted(server, "deepseek_requests_total", method="chat", mode="async") == 2
        assert counted(server, "deepseek_errors_total", code="connection_failed") == 2
        assert counted(server, "deepseek_duration_seconds_count") == 2

        os.kill(server.get("/api/llm/status").json()["pid"], signal.SIGKILL)
        assert counted(server, "deepseek_requests_total", method="chat", mode="async") == 2


@pytest.mark.parametrize(
    ("mode", "workers", "together"),
    [("sync", "2", 2), ("gthread", "1", 4)],
)
def test_requests_in_flight(serving, mode, workers, together):
    """Two sync workers, or one gthread worker with four threads, have two, or four, calls in flight at once."""
    with running() as sandbox, ThreadPoolExecutor(together) as threads:
        sandbox.script([{"fault": "hang", "times": together}])
        options, env = MODES[mode]
        upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url, "LLM_MAX_ATTEMPTS": "1"}
        env = {**env, **upstream, "WEB_CONCURRENCY": workers}
        with serving([*GUNICORN, *options, APP], **env) as server:
            chats = [threads.submit(server.post, "/api/llm/chat", {"prompt": "x"}) for _ in range(together)]
            stats = sandbox.wait_until(lambda stats: stats["in_flight"] == together)
            sandbox.stop()
            codes = [chat.result(GIVE_UP_S).json()["code"] for chat in chats]
    assert stats["peak_in_flight"] == together
    assert codes == ["connection_failed"] * together


@pytest.mark.parametrize("mode", ["sync", "gthread"])
def test_body_over_the_limit(serving, sandbox, mode):
    """Under a real server a body over 1 MiB is a 413, with a Content-Length and in chunks, and 1 MiB is served."""
    limit = 1024 * 1024
    with start(serving, mode, sandbox) as server:
        for size, status in ((limit, 200), (limit + 1, 413)):
            body = b'{"prompt": "x"}'.ljust(size)
            for data in (body, iter([body[:1000], body[1000:]])):
                answer = server.ask("POST", "/api/llm/chat", data=data)
                assert (size, answer.status_code) == (size, status)


@pytest.mark.parametrize("mode", ["sync", "gthread"])
def test_interrupt(serving, sandbox, mode):
    """INT, which Ctrl-C sends, ends it with 0 and leaves no process, after calls too."""
    with start(serving, mode, sandbox) as server:
        assert server.post("/api/llm/chat", {"prompt": "x"}).status_code == 200
        os.killpg(server.pid, signal.SIGINT)
        assert server.process.wait(GIVE_UP_S * 2) == 0
        assert server.processes() == {}


def test_call_in_flight_at_term(serving, sandbox):
    """TERM lets a call that is in flight finish: its caller gets the text."""
    with start(serving, "gthread", sandbox) as server, ThreadPoolExecutor(1) as threads:
        sandbox.script([{"fault": "ok", "latency_ms": 700}])
        chat = threads.submit(server.post, "/api/llm/chat", {"prompt": "x"})
        sandbox.wait_until(lambda stats: stats["in_flight"] == 1)
        assert server.end(signal.SIGTERM) == 0
        assert (chat.result().status_code, chat.result().json()["text"]) == (200, "沙盒已收到：「x」")
        assert server.processes() == {}


def test_wrong_setting(serving, sandbox, tmp_path):
    """A wrong variable ends the start with its name and value, not with a server that fails later."""
    with pytest.raises(AssertionError, match="LLM_MAX_WORKERS='five': need a whole number from 1 to 1000"):
        start(serving, "sync", sandbox, LLM_MAX_WORKERS="five").__enter__()
