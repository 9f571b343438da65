"""More clients than anybody serves at once, by the load tools that everybody has: ab and wrk on bin/serve."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.clients import counted

from deepseek_client.sandbox import running

ROOT = Path(__file__).parents[2]
SERVE = str(ROOT / "bin" / "serve")
LUA = str(Path(__file__).with_name("storm.lua"))
PATIENCE_S = 60
REQUESTS, AT_ONCE = 200, 50
CUT = 200
PROCESSES = 2
PROBES = ("/health", "/ready")

needs_ab = pytest.mark.skipif(
    shutil.which("ab") is None and "CI" not in os.environ, reason="needs ab (Debian: apache2-utils)"
)
needs_wrk = pytest.mark.skipif(
    (shutil.which("wrk") is None and "CI" not in os.environ) or sys.platform != "linux",
    reason="needs wrk, and Linux",
)
over_threads = pytest.mark.parametrize("threads", ["1", "25"], ids=["sync", "gthread"])


@pytest.fixture
def sandbox():
    """An API that takes 20 ms, and counts from 0."""
    with running() as api:
        api.script([{"fault": "ok", "latency_ms": 20, "times": 100_000}])
        yield api


@pytest.fixture
def start(serving, sandbox):
    """Starts bin/serve over the sandbox."""

    def run(threads):
        upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url, "LLM_MAX_ATTEMPTS": "1"}
        return serving([SERVE], WEB_CONCURRENCY=str(PROCESSES), WEB_THREADS=threads, **upstream)

    return run


def answered(server, status):
    """How many chats the server has answered so."""
    return counted(server, "http_requests_total", route="/api/llm/chat", status=status)


@needs_ab
@over_threads
def test_ab(start, sandbox, tmp_path, threads):
    """Each of ab's requests is answered in full with 200, is one call, and probes answer afterwards."""
    body = tmp_path / "body.json"
    body.write_text('{"prompt": "x"}')
    with start(threads) as server:
        # -l: a text may be of any length.
        command = ["ab", "-l", "-q", "-n", str(REQUESTS), "-c", str(AT_ONCE), "-s", str(PATIENCE_S)]
        command += ["-p", str(body), "-T", "application/json", f"{server.url}/api/llm/chat"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE_S)
        assert done.returncode == 0, done.stderr
        told = dict(re.findall(r"^([A-Z][\w -]+): +(\d+)", done.stdout, re.MULTILINE))
        assert (told["Complete requests"], told["Failed requests"]) == (str(REQUESTS), "0")
        assert "Non-2xx responses" not in told
        assert (sandbox.stats()["requests"], answered(server, "200")) == (REQUESTS, REQUESTS)
        assert [server.get(path).status_code for path in PROBES] == [200, 200]


@needs_wrk
@over_threads
def test_wrk(start, sandbox, eventually, threads):
    """wrk gets right answers alone, and for the connections that it cuts no call is made but those in flight."""
    with start(threads) as server:
        command = ["wrk", "-t2", f"-c{CUT}", "-d1s", "--timeout", f"{PATIENCE_S}s", "-s", LUA]
        storm = subprocess.Popen([*command, f"{server.url}/api/llm/chat"], stdout=subprocess.PIPE, text=True)
        if threads != "1":
            # A busy machine may not come so far before the cut.
            sandbox.wait_until(lambda stats: stats["requests"] >= AT_ONCE or storm.poll() is not None)
            assert [server.get(path).status_code for path in PROBES] == [200, 200]
        printed, _ = storm.communicate(timeout=3 * PATIENCE_S)
        told = json.loads(printed.splitlines()[-1])
        assert (storm.returncode, told["wrong"], told["broken"], told["late"]) == (0, 0, 0, 0)
        assert told["served"] > 0

        assert server.get("/health").status_code == 200
        eventually(lambda: server.get("/ready").status_code == 200)
        # Nearly each connection has a request under way at the cut: answered too late for wrk, in flight, or waiting.
        given = told["served"] + told["refused"]
        eventually(
            lambda: sum(answered(server, status) for status in ("200", "503", "499")) >= given + CUT * 3 // 4
        )
        eventually(lambda: sandbox.stats()["requests"] == answered(server, "200"))
        assert sandbox.stats()["requests"] - told["served"] <= CUT // 2  # or each of them would be a call
        assert answered(server, "499") > 0
        assert "Traceback" not in server.output.read_text()
