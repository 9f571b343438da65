"""What an operator sees of a real server: exact counts, ids that can be followed, and never a key."""

import base64
import os
import random
import signal
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepseek_client.sandbox import running
from deepseek_client.sandbox.script import FAULT_NAMES

GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "webapp/gunicorn.conf.py"]
APP = "webapp.wsgi:app"
KEY = "sk-SECRET-5f0c1d2e3b4a9786"
TOKEN = "tok-SECRET-0123456789abcdef"
REQUESTS = [
    ("/api/llm/chat", {"prompt": "x"}),
    ("/api/llm/chat/sync", {"prompt": "x"}),
    ("/api/llm/parse", {"utterance": "打坐"}),
    ("/api/llm/batch", {"requests": [{"prompt": "x"}, {"prompt": "y"}, {}]}),
    ("/api/llm/chat", {"prompt": " "}),
    ("/no/such", {}),
]
FAILURES = [400, 422, 429, 500, 503]

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")


def samples(server, *names):
    """The samples with these names as a counter of (name, value of each label, in the order of the labels' names)."""
    found = Counter()
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            if sample.name in names and sample.value:
                found[(sample.name, *(value for _, value in sorted(sample.labels.items())))] += int(
                    sample.value
                )
    return found


def ask(server, path, body):
    """Sends one request; what /metrics must have counted for it."""
    answer = server.post(path, body)
    route = path if path.startswith("/api/") else "unmatched"
    counts = Counter({("http_requests_total", "POST", route, str(answer.status_code)): 1})
    mode = "sync" if path.endswith("/sync") else "async"
    method = "parse" if "parse" in path else "chat"
    replies = answer.json().get("results", [answer.json()])
    for reply in replies:
        if (code := reply.get("code")) in ("invalid_request", "not_found"):
            continue
        counts["deepseek_requests_total", method, mode] += 1
        if code:
            counts["deepseek_errors_total", code, method, mode] += 1
    return counts


def test_counts_are_exact(serving, eventually):
    """A thousand requests of every outcome over four workers, some of them killed and recycled: each counts once."""
    dice = random.Random(20260101)
    expected = Counter()
    env = {"WEB_CONCURRENCY": "4", "LLM_MAX_ATTEMPTS": "1", "DEEPSEEK_API_KEY": KEY}
    command = [*GUNICORN, "--max-requests", "60", "--max-requests-jitter", "30", APP]
    with running() as sandbox, ThreadPoolExecutor(8) as threads:
        replies = [
            {"fault": "status", "status": dice.choice(FAILURES)} if dice.random() < 0.4 else {"fault": "ok"}
            for _ in range(2000)
        ]
        sandbox.script(replies)
        with serving(command, DEEPSEEK_BASE_URL=sandbox.url, **env) as server:
            for _ in range(4):
                work = [dice.choice(REQUESTS) for _ in range(250)]
                for counts in threads.map(lambda one: ask(server, *one), work):
                    expected += counts
                killed = max(set(server.processes()) - {server.pid})
                os.kill(killed, signal.SIGKILL)
                eventually(lambda killed=killed: killed not in server.processes())
            seen = samples(server, "deepseek_requests_total", "deepseek_errors_total", "http_requests_total")
    mine = {key: value for key, value in seen.items() if key[2] not in ("/metrics", "/health")}
    assert mine == expected
    assert {key[1] for key in expected if key[0] == "deepseek_errors_total"} >= {
        *("upstream_rejected", "rate_limited", "upstream_unavailable")
    }


def test_one_id_everywhere(serving):
    """The caller's id is in the answer, in the legacy client's line from the pool's thread, and at the API."""
    with running() as sandbox:
        sandbox.script([{"fault": "status", "status": 422}])
        with serving([*GUNICORN, APP], DEEPSEEK_BASE_URL=sandbox.url, DEEPSEEK_API_KEY=KEY) as server:
            headers = {"X-Request-ID": "quest-7"}
            answer = server.ask("POST", "/api/llm/chat", json={"prompt": "x"}, headers=headers)
            lines = server.output.read_text().splitlines()
            assert answer.headers["X-Request-ID"] == "quest-7"
            assert sandbox.stats()["last_request_headers"]["X-Request-ID"] == "quest-7"
            assert [line for line in lines if "[quest-7] deepseek_client.client: chat failed" in line]
            assert [line for line in lines if "[quest-7] deepseek_client.calls: method=chat" in line]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_key_anywhere(serving, log_format):
    """After every fault through every route, verbosely, no log, answer, metric or command line has key or token."""
    env = {
        "DEEPSEEK_API_KEY": KEY,
        "WEB_API_TOKEN": TOKEN,
        "LOG_FORMAT": log_format,
        "DEEPSEEK_VERBOSE": "1",
        "LLM_DEADLINE_S": "0.4",
        "LLM_MAX_ATTEMPTS": "1",
        "PYTHONASYNCIODEBUG": "1",
    }
    shown = []
    named = {
        "charset": {"charset": "gbk"},
        "lengths": {"lengths": ["5", f"7{KEY}"]},
        "raw": {"head": f"HTTP/1.1 403 {KEY}\r\nContent-Length: 0\r\n\r\n"},
        "redirect": {"location": f"/{KEY}"},
    }
    others = set(FAULT_NAMES) - {"status", "content", "huge_body", "vanish_after_reply"}
    faults = [{"fault": name, **named.get(name, {})} for name in sorted(others)]
    faults += [{"fault": "status", "status": status} for status in (400, *FAILURES, 403, 401, 402)]
    with running() as sandbox, ThreadPoolExecutor(8) as threads:
        sandbox.script(faults * 6)
        command = [*GUNICORN, "--threads", "8", "--worker-class", "gthread", APP]
        with serving(command, DEEPSEEK_BASE_URL=sandbox.url, **env) as server:

            def ask_all(token):
                headers = {"Authorization": f"Bearer {token}"}
                for path, body in REQUESTS:
                    answer = server.ask("POST", path, json=body, headers=headers)
                    shown.append(f"{answer.headers} {answer.text}")

            list(threads.map(ask_all, [TOKEN] * 12 + [KEY, "wrong"]))
            shown += [server.get(path).text for path in ("/metrics", "/ready", "/health", "/no/such")]
            shown += server.processes().values()
            shown.append(server.output.read_text())
    text = "\n".join(shown)
    assert "deepseek_client" in text
    for secret in (KEY, TOKEN):
        for form in (secret, secret[-8:], base64.b64encode(secret.encode()).decode()):
            assert form not in text
