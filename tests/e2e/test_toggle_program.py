import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import SandboxConfig, running

ROOT = Path(__file__).parents[2]
LOAD = 20
TOKEN = "sesame"

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the switch reads /proc")

# webapp's own configuration, with processes that look soon whether their testimony is still there.
LOOKS_SOON = """
from deepseek_client.telemetry import testimony
testimony._LOOK_AGAIN_S = 0.2
with open("webapp/gunicorn.conf.py", encoding="utf-8") as file:
    exec(file.read())
"""


class Deployment:
    """A directory that gunicorn can serve from: this code, and a .env of its own."""

    def __init__(self, root, env_text):
        self.root = root
        self.env_file = root / ".env"
        self.env_file.write_text(env_text)
        (root / "bin").mkdir()
        for name in ("serve", "toggle-async"):  # copies: they find their directory by their own place
            shutil.copy(ROOT / "bin" / name, root / "bin")
        (root / "bin" / "setup").write_text("#!/bin/sh\n")
        (root / "bin" / "setup").chmod(0o755)
        for name, target in (("webapp", ROOT), ("deepseek_client", ROOT)):
            (root / name).symlink_to(target / name)
        (root / ".venv").symlink_to(sys.prefix)

    def here(self, *command, **variables):
        """The command in this directory, with these variables; .env alone says the mode and the token otherwise."""
        unset = ["--unset=USE_ASYNC_DEEPSEEK", "--unset=WEB_API_TOKEN"]
        assigned = [f"{name}={value}" for name, value in variables.items()]
        return ["env", *unset, f"--chdir={self.root}", *assigned, *command]

    def gunicorn(self, *options, config="webapp/gunicorn.conf.py", **variables):
        """The command that serves."""
        return self.here(
            *(sys.executable, "-m", "gunicorn", "-c", config, *options, "webapp.wsgi:app"), **variables
        )

    def toggle(self, *arguments):
        """Runs bin/toggle-async: the exit code, the lines of standard output, and error."""
        ended = subprocess.run(
            [sys.executable, self.root / "bin" / "toggle-async", *arguments],
            cwd="/",
            env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=GIVE_UP_S,
        )
        return ended.returncode, ended.stdout.splitlines(), ended.stderr

    def refused(self, *arguments):
        """Runs it where it must fail with 1, and returns its one line; .env stays as it was."""
        before = self.env_file.read_bytes()
        code, _, error = self.toggle(*arguments)
        assert (code, error.count("\n"), error[:8]) == (1, 1, "toggle: ")
        assert self.env_file.read_bytes() == before
        return error


@pytest.fixture(scope="module")
def deploy(tmp_path_factory):
    """Makes deployments."""
    return lambda env_text="": Deployment(tmp_path_factory.mktemp("deployment"), env_text)


@pytest.fixture(scope="module")
def upstream():
    """Variables that send calls to a sandbox, whose latency leaves the machine some time for reloads."""
    with running(SandboxConfig(port=0, latency_ms=30)) as sandbox:
        yield {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}


@pytest.fixture(scope="module")
def deployed(deploy, serving, upstream, eventually):
    """A deployment, and gunicorn with two sync workers that serves it."""
    deployment = deploy("# ours\nUSE_ASYNC_DEEPSEEK=1 # the switch\nLLM_DEADLINE_S=20\n")
    with serving(deployment.gunicorn(), **upstream) as server:
        # One worker answers, and the other may still read the .env that a test is about to change.
        eventually(lambda: deployment.toggle("status")[0] == 0)
        yield deployment, server


def workers(server):
    """The pids of its workers."""
    return {pid for pid, line in server.processes().items() if pid != server.pid and "sandbox" not in line}


def status(server):
    """One worker's status."""
    return server.ask("GET", "/api/llm/status", headers={"Authorization": f"Bearer {TOKEN}"}).json()


class Load:
    """Callers that ask for chats one after the other, each on a connection of its own, as long as the block runs."""

    def __init__(self, server, callers=LOAD):
        self.outcomes = []
        self._server = server
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(callers)
        self._callers = callers

    def __enter__(self):
        self._running = [self._threads.submit(self._ask) for _ in range(self._callers)]
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._threads.shutdown()

    def _ask(self):
        while not self._stop.is_set():
            connection = HTTPConnection(
                "127.0.0.1", self._server.port, timeout=GIVE_UP_S
            )  # cheaper than requests
            try:
                connection.request(
                    "POST", "/api/llm/chat", b'{"prompt": "x"}', {"Content-Type": "application/json"}
                )
                answer = connection.getresponse()
                self.outcomes.append(json.load(answer)["mode"] if answer.status == 200 else answer.status)
            except (OSError, HTTPException, ValueError) as error:
                self.outcomes.append(repr(error))
            finally:
                connection.close()


def test_under_load(deployed, eventually):
    """Twice there and back under 20 callers: each time every worker is new and in the mode, and no request fails."""
    deployment, server = deployed
    with Load(server) as load:
        eventually(lambda: len(load.outcomes) >= LOAD)
        for verb, value, mode in [("disable", 0, "sync"), ("enable", 1, "async")] * 2:
            old = workers(server)
            code, lines, error = deployment.toggle(verb)
            new, ended_at = workers(server), len(load.outcomes)
            assert (code, error, len(lines)) == (0, "", 2)
            assert (len(new), new & old) == (2, set())
            listed = " ".join(map(str, sorted(new)))
            assert lines[1].endswith(f", workers {listed} {mode}")
            assert (
                deployment.env_file.read_text().splitlines()[1] == f"USE_ASYNC_DEEPSEEK={value} # the switch"
            )
            # Each caller may still hold one answer of before.
            eventually(lambda ended_at=ended_at: len(load.outcomes) >= ended_at + LOAD + 5)
            assert set(load.outcomes[ended_at + LOAD :]) == {mode}
    assert set(load.outcomes) == {"async", "sync"}


def test_enabled_already(deployed):
    """When .env and all workers agree with what is asked, nothing is written and nobody reloaded."""
    deployment, server = deployed
    before, changed_at = workers(server), deployment.env_file.stat().st_mtime_ns
    code, lines, error = deployment.toggle("enable")
    assert (code, lines[1:], error) == (0, ["nothing to do: they agree"], "")
    assert (workers(server), deployment.env_file.stat().st_mtime_ns) == (before, changed_at)


def test_status(deployed):
    """status is 0 and names each worker while .env and they agree, and 1 after .env has changed without a reload."""
    deployment, server = deployed
    before = sorted(workers(server))
    code, lines, error = deployment.toggle("status")
    assert (code, lines[0], error) == (0, ".env async (USE_ASYNC_DEEPSEEK is '1')", "")
    assert [line.partition(", since ")[0] for line in lines[1:]] == [
        f"worker {pid}: async, engine threads" for pid in before
    ]
    text = deployment.env_file.read_text()
    deployment.env_file.write_text(text.replace("=1 #", "=off #"))
    code, again, error = deployment.toggle("status")
    deployment.env_file.write_text(text)
    assert (code, again) == (1, [".env sync (USE_ASYNC_DEEPSEEK is 'off')", *lines[1:]])
    assert error == "toggle: the workers do not do what .env says: disable makes them\n"
    assert sorted(workers(server)) == before


def test_nothing_runs(deploy, deployed):
    """Where nothing runs, or only a server of another directory has testified, nothing is changed."""
    other, server = deployed
    before = workers(server)
    elsewhere = deploy("A=1\n")
    start = "toggle: nothing runs here: "
    assert elsewhere.refused("disable").startswith(f"{start}no application with DeepSeek(app) ")
    shutil.copytree(other.root / ".deepseek", elsewhere.root / ".deepseek")
    for verb in ("disable", "status"):
        assert elsewhere.refused(verb) == f"{start}process {server.pid} works in another directory\n"
    assert workers(server) == before


def test_testimonies_that_are_lost(deploy, serving, upstream, eventually):
    """After rm -rf .deepseek under a running server the next requests make the rollback possible again."""
    deployment = deploy("USE_ASYNC_DEEPSEEK=1\n")
    (deployment.root / "soon.conf.py").write_text(LOOKS_SOON)
    with serving(deployment.gunicorn(config="soon.conf.py"), WEB_CONCURRENCY="1", **upstream) as server:
        (old,) = workers(server)
        shutil.rmtree(deployment.root / ".deepseek")
        said = f"toggle: gunicorn {server.pid} runs here and has not testified"
        for verb in ("status", "disable"):
            assert deployment.refused(verb).startswith(said)

        def has_testified():
            assert server.ask("GET", "/health").status_code == 200
            return (deployment.root / ".deepseek").exists()

        eventually(has_testified)
        code, lines, error = deployment.toggle("disable")
        (new,) = workers(server)
        assert (code, error, new != old) == (0, "", True)
        assert lines[0].endswith(f", worker {old} async")
        assert lines[1].endswith(f", worker {new} sync")


def test_wrong_setting(deployed):
    """A .env with which gunicorn would end at the reload is refused with 2, and the server goes on as it was."""
    deployment, server = deployed
    before, text = workers(server), deployment.env_file.read_text()
    deployment.env_file.write_text(f"{text}LLM_BATCH_LIMIT=five\n")
    code, lines, error = deployment.toggle("disable")
    assert (code, lines) == (2, [])
    assert error == (
        "toggle: a reload would end the server: LLM_BATCH_LIMIT='five': need a whole number from 1 to 10000\n"
    )
    assert deployment.env_file.read_text() == f"{text}LLM_BATCH_LIMIT=five\n"
    deployment.env_file.write_text(text)
    assert workers(server) == before


def test_two_deployments(deploy, serving, deployed):
    """Only this directory's server reloads: bin/serve with a token and a sandbox, beside a gunicorn elsewhere."""
    _, other = deployed
    deployment = deploy(f"WEB_API_TOKEN={TOKEN}\n")
    command = deployment.here(sys.executable, "bin/serve")
    with serving(command, WEB_CONCURRENCY="1") as server:
        sandbox = set(server.processes()) - workers(server) - {server.pid}
        assert len(sandbox) == 1
        before, others = workers(server), workers(other)
        code, lines, error = deployment.toggle("disable")
        assert (code, error) == (0, "")
        assert lines[0].startswith("before: .env async (USE_ASYNC_DEEPSEEK not set), worker ")
        assert deployment.env_file.read_text() == f"WEB_API_TOKEN={TOKEN}\nUSE_ASYNC_DEEPSEEK=0\n"
        assert (status(server)["async_enabled"], status(other)["async_enabled"]) == (False, True)
        assert (workers(other), workers(server) & before) == (others, set())
        assert sandbox < set(server.processes())


def test_deaf_server(deploy, serving, upstream):
    """A server that has the variable in its environment would not hear, and is not reloaded."""
    deployment = deploy("USE_ASYNC_DEEPSEEK=1\n")
    why = "USE_ASYNC_DEEPSEEK='1' is in the environment of the running server"
    with serving(deployment.gunicorn(USE_ASYNC_DEEPSEEK="1"), WEB_CONCURRENCY="1", **upstream) as server:
        before = workers(server)
        assert deployment.refused("disable").startswith(f"toggle: {why}")
        assert workers(server) == before
        assert not (deployment.root / ".env.bak").exists()
        code, lines, error = deployment.toggle("status")
        assert (code, error) == (0, "")
        assert lines[1].startswith(f"worker {max(before)}: async")
        assert why in lines[2]


def test_preloaded_server(deploy, serving, upstream):
    """A preloaded server hears no reload: .env is written for its next start, which status asks for until it came."""
    deployment = deploy("USE_ASYNC_DEEPSEEK=1\n")
    command = deployment.gunicorn("--preload")
    with serving(command, WEB_CONCURRENCY="1", **upstream) as server:
        before = workers(server)
        code, lines, error = deployment.toggle("status")
        assert (code, error) == (0, "")
        assert "was started with preload" in lines[2]
        for verb in ("disable", "status"):
            code, _, error = deployment.toggle(verb)
            assert code == 1
            assert "was started with preload and hears no SIGHUP: restart it" in error
            assert workers(server) == before
        assert deployment.env_file.read_text() == "USE_ASYNC_DEEPSEEK=0\n"
    with serving(command, WEB_CONCURRENCY="1", **upstream):
        code, lines, error = deployment.toggle("status")
        assert (code, error) == (0, "")
        assert "sync" in lines[1]


def test_old_worker_lingers(deploy, serving, eventually):
    """An old worker that a hanging call holds is named, with 1; .env stays changed, and status is 0 when it is gone."""
    deployment = deploy("USE_ASYNC_DEEPSEEK=1\n")
    with running() as sandbox, ThreadPoolExecutor(1) as threads:
        upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}
        with serving(deployment.gunicorn(), WEB_CONCURRENCY="1", **upstream) as server:
            (old,) = workers(server)
            sandbox.script([{"fault": "hang"}])
            chat = threads.submit(server.post, "/api/llm/chat", {"prompt": "x"})
            sandbox.wait_until(lambda stats: stats["in_flight"] == 1)
            code, lines, error = deployment.toggle("disable", "--wait", "1.5")
            assert (code, error.count("\n")) == (1, 1)
            assert f"old worker {old} did not leave within 1.5 s" in error
            # It is busy with its one call, and has told its mode all the same.
            assert lines[0].endswith(f"worker {old} async")
            assert deployment.env_file.read_text() == "USE_ASYNC_DEEPSEEK=0\n"
            assert old in workers(server)
            sandbox.stop()
            assert chat.result(GIVE_UP_S).json()["code"] == "connection_failed"
            eventually(lambda: deployment.toggle("status")[0] == 0)
            assert old not in workers(server)
