"""bin/serve --tasks: the web, a worker and a server for the queue, and what is left of them."""

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from support.patience import GIVE_UP_S
from support.ports import free_port
from support.queue_servers import PROGRAMS, program

from deepseek_client.tasks.broker import Broker
from deepseek_client.telemetry.testimony import process_state

ROOT = Path(__file__).parents[2]
SERVE = str(ROOT / "bin" / "serve")
PROMPT = "Hallo aus der Schlange"
"""A worker loads Celery before it works, and the machine may be busy."""

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")


@pytest.fixture(scope="module", autouse=True)
def set_up():
    """The first set-up, which may take a minute, is not what these tests are about."""
    subprocess.run([ROOT / "bin" / "setup"], check=True)


@pytest.fixture
def start(serving, sandbox, tmp_path):
    """Starts bin/serve --tasks over the shared sandbox, with the queue's data in the test's folder."""
    upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}
    return lambda **env: serving(
        [SERVE, "--tasks"], **{**upstream, "DEEPSEEK_RUN_DIR": str(tmp_path / "run"), **env}
    )


class Lasting(NamedTuple):
    """A server that several tests ask."""

    server: Any
    console: str
    folder: Path


@pytest.fixture(scope="module")
def lasting(serving, shared_sandbox, tmp_path_factory):
    """One that runs, with a console, for the tests that neither end nor change it."""
    folder, port = tmp_path_factory.mktemp("lasting") / "run", free_port()
    upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": shared_sandbox.url}
    with serving(
        [SERVE, "--tasks"], **upstream, DEEPSEEK_RUN_DIR=str(folder), CONSOLE_PORT=str(port)
    ) as server:
        yield Lasting(server, f"http://127.0.0.1:{port}", folder)


@pytest.fixture
def queues(tmp_path):
    """The pids of the queue's servers for the test's folder; they overwrite the mark of a test's processes."""

    def find():
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink() == tmp_path / "run" / "queue" and (
                    entry / "cmdline"
                ).read_bytes():
                    found.append(int(entry.name))
        return found

    return find


@pytest.fixture
def server(start):
    """One that runs."""
    with start() as server:
        yield server


def submit(server, prompt=PROMPT):
    """Submits a task and gives the path of its status."""
    answer = server.post("/api/llm/tasks", {"prompt": prompt})
    assert answer.status_code == 202, answer.text
    return answer.headers["Location"]


def state_of(server, path):
    """What the status says now, None where there is none."""
    return server.get(path).json().get("status")


def result_of(server, path, eventually):
    """The text of a task, once it is completed."""
    # Each of the web's workers leaves a server that was away alone for a moment, and the next answer is another one's.
    return eventually(lambda: server.get(path).json().get("result"), GIVE_UP_S)["text"]


def pids_of(server, word):
    """The pids of its processes whose command line has the word."""
    return [pid for pid, line in server.processes().items() if word in line]


def new_worker(server, eventually, other_than=0):
    """The pid of its worker, once there is one that is not the other one."""
    find = lambda: [pid for pid in pids_of(server, "deepseek_client worker") if pid != other_than]  # noqa: E731
    (pid,) = eventually(find, GIVE_UP_S)
    return pid


def test_task_from_end_to_end(lasting, sandbox, eventually):
    """A task is accepted at once, made by the worker, and its result is told; the output says where tasks wait."""
    server = lasting.server
    assert PROMPT in result_of(server, submit(server), eventually)
    assert re.search("No CELERY_BROKER_URL: tasks wait in .*run/queue", server.output.read_text())


def test_console_shows_the_queue(lasting, sandbox, eventually):
    """The console is told of the queue that was made for this server, counts its worker and what that has done."""

    def figures():
        with contextlib.suppress(requests.RequestException, ValueError), requests.Session() as http:
            http.trust_env = False
            answer = http.get(f"{lasting.console}/tasks", timeout=GIVE_UP_S).json()["figures"]
            return [int(answer[name]) for name in ("tasks_completed", "tasks_workers")]

    done, _ = eventually(figures, GIVE_UP_S)
    result_of(lasting.server, submit(lasting.server), eventually)
    eventually(lambda: figures() == [done + 1, 1], GIVE_UP_S)


def test_password_in_no_list_of_processes(lasting):
    """No command line has the password of the queue's server, which the web has in its environment."""
    server = lasting.server
    environ = (Path("/proc") / str(server.pid) / "environ").read_text()
    (password,) = re.findall(r"CELERY_BROKER_URL=redis://:(\S+?)@127\.0\.0\.1:", environ)
    assert len(password) >= 32
    assert [line for line in server.processes().values() if password in line] == []
    assert password not in server.output.read_text()


@pytest.mark.parametrize("end", ["ctrl-c", "term"])
def test_stop(server, eventually, queues, end):
    """Ctrl-C and TERM end it with 0; when the web's master has ended, worker and server have ended before."""
    result_of(server, submit(server), eventually)
    assert queues()
    if end == "ctrl-c":
        os.killpg(server.pid, signal.SIGINT)
    else:
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(GIVE_UP_S) == 0
    assert queues() == []
    assert server.processes() == {}
    output = server.output.read_text()
    assert "Traceback" not in output
    assert "starting it again" not in output


def test_kill_9(server, eventually, queues):
    """kill -9 of the web's master leaves nothing: worker and server end after the web's workers."""
    result_of(server, submit(server), eventually)
    assert queues()
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    eventually(lambda: server.processes() == {} and not queues(), GIVE_UP_S)


def keepers_of(server):
    """The pids of the keeper's parent and of its child."""
    parents = {pid: process_state(pid).parent for pid in pids_of(server, "tasks.keeper")}
    ((child, parent),) = ((pid, parent) for pid, parent in parents.items() if parent in parents)
    return parent, child


def test_kill_9_of_the_keeper(server, eventually, queues):
    """A keeper that is killed takes worker and server with it, and is started again: tasks go on, with their data."""
    before = submit(server)
    result_of(server, before, eventually)
    parent, keeper = keepers_of(server)
    (queue,), worker = queues(), new_worker(server, eventually)
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: queues() not in ([], [queue]) and len(queues()) == 1, GIVE_UP_S)
    new_worker(server, eventually, other_than=worker)
    eventually(lambda: state_of(server, before) == "completed", GIVE_UP_S)
    ask = lambda: server.post("/api/llm/tasks", {"prompt": PROMPT}).headers.get("Location")  # noqa: E731
    assert PROMPT in result_of(server, eventually(ask, GIVE_UP_S), eventually)
    assert keepers_of(server)[0] == parent
    output = server.output.read_text()
    assert output.count("tasks: their keeper has ended by signal 9: starting it again in 0.1 s") == 1
    assert server.end() == 0
    assert server.processes() == {}
    assert queues() == []


def test_kill_9_of_the_keepers_parent(server, eventually, queues):
    """The keeper goes on without its parent: tasks are made, a reload replaces the worker, and a stop ends all."""
    worker = new_worker(server, eventually)
    parent, keeper = keepers_of(server)
    os.kill(parent, signal.SIGKILL)
    eventually(lambda: pids_of(server, "tasks.keeper") == [keeper], GIVE_UP_S)
    assert PROMPT in result_of(server, submit(server), eventually)
    server.process.send_signal(signal.SIGHUP)
    new_worker(server, eventually, other_than=worker)
    assert server.end() == 0
    assert server.processes() == {}
    assert queues() == []


def test_kill_9_of_both_keepers(server, eventually, queues):
    """Without any keeper worker and server end; the web serves on, and says that the queue is away."""
    result_of(server, submit(server), eventually)
    assert queues()
    for keeper in keepers_of(server):
        os.kill(keeper, signal.SIGKILL)
    eventually(lambda: not queues() and not pids_of(server, "deepseek_client worker"), GIVE_UP_S)
    answer = server.post("/api/llm/tasks", {"prompt": PROMPT})
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
    assert server.post("/api/llm/chat", {"prompt": PROMPT}).status_code == 200
    assert server.end() == 0


def test_worker_is_started_again(server, eventually):
    """A worker that is killed has a successor, which makes the next task, and the output says so."""
    worker = new_worker(server, eventually)
    os.kill(worker, signal.SIGKILL)
    new_worker(server, eventually, other_than=worker)
    assert PROMPT in result_of(server, submit(server), eventually)
    assert "tasks: the worker has ended by signal 9: starting it again in 0.1 s" in server.output.read_text()


def test_worker_is_started_again_where_nobody_is_told(serving, sandbox, tmp_path, eventually):
    """Its keeper lives on when its line about that cannot be written: a log on a full disk stops no task."""
    upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}
    command = ["sh", "-c", 'exec "$0" --tasks >/dev/full 2>/dev/full', SERVE]
    with serving(command, **upstream, DEEPSEEK_RUN_DIR=str(tmp_path / "run")) as server:
        keepers = set(pids_of(server, "tasks.keeper"))
        worker = new_worker(server, eventually)
        os.kill(worker, signal.SIGKILL)
        new_worker(server, eventually, other_than=worker)
        assert PROMPT in result_of(server, submit(server), eventually)
        assert set(pids_of(server, "tasks.keeper")) == keepers


def test_server_is_started_again(server, eventually, queues):
    """The queue's server that is killed comes back with its data, and tasks go on."""
    before = submit(server)
    result_of(server, before, eventually)
    (queue,) = queues()
    os.kill(queue, signal.SIGKILL)
    eventually(lambda: queues() not in ([], [queue]), GIVE_UP_S)
    eventually(lambda: state_of(server, before) == "completed", GIVE_UP_S)
    # Each of the web's workers leaves the server alone for a moment.
    ask = lambda: server.post("/api/llm/tasks", {"prompt": PROMPT}).headers.get("Location")  # noqa: E731
    assert PROMPT in result_of(server, eventually(ask, GIVE_UP_S), eventually)
    assert "tasks: the queue's server has ended by signal 9" in server.output.read_text()


def test_reload_replaces_the_worker(server, eventually):
    """SIGHUP replaces the worker beside the web's, so that it reads the settings again, and loses no task."""
    worker = new_worker(server, eventually)
    result_of(server, submit(server), eventually)
    server.process.send_signal(signal.SIGHUP)
    new_worker(server, eventually, other_than=worker)
    assert PROMPT in result_of(server, submit(server), eventually)
    assert "starting it again" not in server.output.read_text()


def test_new_master(server, eventually, queues):
    """After USR2 and the end of the old master the new one has the same worker and queue, and ends them with itself."""
    worker = new_worker(server, eventually)
    known = {*server.processes()}
    server.process.send_signal(signal.SIGUSR2)

    def new_masters():
        parents = {
            pid: process_state(pid).parent for pid in {*server.processes()} - known if process_state(pid)
        }
        return [pid for pid in parents if pid in parents.values()]

    (master,) = eventually(new_masters, GIVE_UP_S)
    assert server.end() == 0
    eventually(server_answers(server), GIVE_UP_S)
    assert PROMPT in result_of(server, submit(server), eventually)
    assert pids_of(server, "deepseek_client worker") == [worker]
    os.kill(master, signal.SIGTERM)
    eventually(lambda: server.processes() == {} and not queues(), GIVE_UP_S)


def server_answers(server):
    """Whether anybody serves there; asked after the process that the test has started is gone."""

    def ask():
        with contextlib.suppress(requests.RequestException):
            return server.get("/health").status_code == 200

    return ask


def test_second_one_for_the_same_data(lasting, sandbox, eventually):
    """A second bin/serve --tasks for the same data is an exit with 1 and one line, and the first one serves on."""
    port = free_port()
    second = subprocess.run(
        [SERVE, "--tasks"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PORT": str(port),
            "DEEPSEEK_API_KEY": "sk-test",
            "DEEPSEEK_RUN_DIR": str(lasting.folder),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    assert (second.returncode, second.stderr.count("\n")) == (1, 1), second.stderr
    assert second.stderr.startswith("serve: another server uses the queue's data in ")
    assert PROMPT in result_of(lasting.server, submit(lasting.server), eventually)


def test_stop_finishes_what_runs(start, sandbox, eventually):
    """A stop lets the worker finish its call: the next start has the result, and the API was asked once."""
    sandbox.script([{"fault": "ok", "latency_ms": 2000}])
    with start() as server:
        path = submit(server)
        eventually(lambda: state_of(server, path) == "started", GIVE_UP_S)
        assert server.end() == 0
    with start() as again:
        assert state_of(again, path) == "completed"
    assert sandbox.stats()["requests"] == 1


def test_stop_keeps_what_waits(start, sandbox, eventually):
    """A task that waits at a stop is made after the next start, by whichever password and port."""
    sandbox.script([{"fault": "ok", "latency_ms": 2000}])
    with start(LLM_MAX_WORKERS="1") as server:
        first, second = submit(server), submit(server, "zweite")
        eventually(lambda: state_of(server, first) == "started", GIVE_UP_S)
        assert server.end() == 0
    with start(LLM_MAX_WORKERS="1") as again:
        assert "zweite" in result_of(again, second, eventually)
    assert sandbox.stats()["requests"] == 2


@pytest.mark.parametrize("name", PROGRAMS)
def test_server_that_is_there_already(start, tmp_path, monkeypatch, eventually, queues, name):
    """With a CELERY_BROKER_URL it starts a worker and no server; one that its admin stops is not its to end."""
    path = program(name)
    monkeypatch.setattr("deepseek_client.tasks.broker.server_program", lambda: path)
    own = Broker(tmp_path / "theirs")
    process = own.launch()
    try:
        own.wait_until_ready(process)
        with start(CELERY_BROKER_URL=own.url) as server:
            assert PROMPT in result_of(server, submit(server), eventually)
            assert queues() == []
            assert server.end() == 0
        assert process.poll() is None
    finally:
        own.stop(process)
        own.close()
