"""A stranger installs the wheel and upgrades an application by README alone: code, settings, commands, gunicorn."""

import os
import re
import shlex
import subprocess

import pytest
from support.documents import README, blocks
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import SandboxConfig, running

THEIR_CLIENT = """
import os
import requests


class MyClient:
    def chat(self, prompt):
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "deepseek-flash", "thinking": {"type": "disabled"}, "messages": messages}
        headers = {"Authorization": "Bearer sk-test"}
        reply = requests.post(f"{os.environ['UPSTREAM']}/chat/completions", json=body, headers=headers, timeout=60)
        return {"text": reply.json()["choices"][0]["message"]["content"]}
"""
ANSWER = {"text": "沙盒已收到：「甲」"}
# What the tests' own server sets, and a stranger does not.
UNSET = ["USE_ASYNC_DEEPSEEK", "LLM_MAX_WORKERS", "DEEPSEEK_API_KEY", "DEEPSEEK_MODEL", "WEB_API_TOKEN"]

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the switch reads /proc")


def typed(document, *programs):
    """What the document has a reader type, by the program's name."""
    lines = [line for block in blocks(document, "sh") for line in block.text.splitlines()]
    return [words for line in lines if (words := shlex.split(line))[0] in programs]


@pytest.fixture
def deployment(tmp_path):
    """The stranger's directory after the steps of README: the first recipe as app.py, and the `.env`."""
    recipe = blocks(README, "diff")[0].text.splitlines()
    [settings] = blocks(README, "ini")
    (tmp_path / "app.py").write_text(
        "\n".join(line[1:] for line in recipe if line[:1] != "-"), encoding="utf-8"
    )
    (tmp_path / "my_client.py").write_text(THEIR_CLIENT, encoding="utf-8")
    (tmp_path / ".env").write_text(settings.text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def command(deployment, installed_python):
    """Runs a line with `deepseek-client` in the deployment's directory: its exit code and what it wrote."""

    def run(words):
        done = subprocess.run(
            [installed_python.parent / words[0], *words[1:]],
            cwd=deployment,
            env={"PATH": os.environ["PATH"], "HOME": str(deployment)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=GIVE_UP_S,
        )
        return done.returncode, done.stdout

    return run


def test_upgrade_and_return(serving, deployment, command, installed_python):
    """The application answers within the limit, is counted and logged, and goes back and forth by what README types."""
    [server_line] = [words for words in typed(README, "gunicorn") if "-c" not in words]
    doctor, *toggles = typed(README, "deepseek-client")
    line = f'exec env {" ".join(f"-u {name}" for name in UNSET)} "$0" -m {shlex.join(server_line)} -b 127.0.0.1:$PORT'
    with (
        running(SandboxConfig(port=0, latency_ms=0)) as sandbox,
        serving(["sh", "-c", line, str(installed_python)], cwd=deployment, UPSTREAM=sandbox.url) as server,
    ):
        assert server.post("/talk", {"prompt": "甲"}).json() == ANSWER
        metrics = server.get("/metrics").text
        assert 'deepseek_requests_total{method="chat",mode="async"} 1.0' in metrics
        assert "deepseek_pool_workers 20.0" in metrics
        [shown] = [block.text.strip() for block in blocks(README, "text")]
        [real] = [line for line in server.output.read_text().splitlines() if "deepseek_client.calls" in line]
        assert re.sub(r"\d+", "0", real.split("] ", 1)[1]) == re.sub(r"\d+", "0", shown.split("] ", 1)[1])

        code, said = command(doctor)
        assert code == 0, said
        for words in toggles:
            code, said = command(words)
            assert code == 0, said
        assert server.post("/talk", {"prompt": "甲"}).json() == ANSWER
        assert 'deepseek_requests_total{method="chat",mode="sync"} 1.0' in server.get("/metrics").text
        code, said = command([*toggles[0][:2], "enable"])
        assert code == 0, said
        assert server.post("/talk", {"prompt": "甲"}).json() == ANSWER
        assert 'deepseek_requests_total{method="chat",mode="async"} 2.0' in server.get("/metrics").text
