"""Tasks over a real server, real Celery workers and a real gunicorn, some of which are killed and frozen."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from support.patience import GIVE_UP_S
from support.ports import free_port
from support.queue_server import PASSWORD

from deepseek_client import QueueUnavailable, Settings
from deepseek_client.sandbox import SandboxConfig, running
from deepseek_client.tasks import Jobs

ROOT = Path(__file__).parents[2]
GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "webapp/gunicorn.conf.py", "webapp.wsgi:app"]
WORKER = [sys.executable, "-m", "deepseek_client.tasks.app"]
KEY = "sk-0123456789abcdef"
QUEUE = "{deepseek}:queue"
DEADLINE_S = 60  # of a call, which a busy machine may keep waiting
SHORT_DEADLINE_S = 5  # a lost worker's tasks come back 10 s after it


class Worker:
    """A Celery worker in a process of its own."""

    def __init__(self, env, output):
        self.output = output
        with output.open("wb") as stream:
            self.process = subprocess.Popen(
                WORKER,
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def kill(self):
        """Ends it as a crash does."""
        self.process.kill()
        self.process.wait(GIVE_UP_S)


@pytest.fixture
def box():
    """A sandbox with a latency, so that calls are in flight when something happens."""
    with running(SandboxConfig(port=0, latency_ms=200)) as made:
        yield made


@pytest.fixture
def env(box, own_queue):
    """What web and workers are started with."""
    return {
        "DEEPSEEK_API_KEY": KEY,
        "DEEPSEEK_BASE_URL": box.url,
        "CELERY_BROKER_URL": own_queue.url,
        "LLM_DEADLINE_S": str(DEADLINE_S),
        "LLM_MAX_WORKERS": "5",
    }


@pytest.fixture
def worker(env, tmp_path):
    """Starts workers, and leaves none."""
    started = []

    def start(**more):
        started.append(Worker({**env, **more}, tmp_path / f"worker{len(started)}.log"))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def jobs(env):
    """The queue, from this process."""
    made = Jobs(Settings.from_env(env))
    yield made
    made.close()


@pytest.fixture
def has_ended(jobs, eventually):
    """Waits for tasks and gives what became of them."""

    def wait(tasks):
        return [eventually(lambda task=task: ended_or_none(jobs, task), 2 * GIVE_UP_S) for task in tasks]

    return wait


def ended_or_none(jobs, task_id):
    """The task, once it has ended; an outage is waited for."""
    try:
        task = jobs.look(task_id)
    except QueueUnavailable:
        return None
    return task if task.has_ended else None


def submit_all(jobs, prompts):
    """Their ids; what a server that was silent for a moment has refused is submitted again."""
    return [submit(jobs, prompt) for prompt in prompts]


def submit(jobs, prompt):
    """The id of a task."""
    ids = []

    def accepted():
        with contextlib.suppress(QueueUnavailable):
            ids.append(jobs.submit("chat", (prompt,)).task_id)
        return ids

    poll_until(accepted)
    return ids[0]


def said_of(ended):
    """What became of the tasks, in short: a failure with its code."""
    return {(task.status, task.code) for task in ended}


def test_every_task_has_one_result_whatever_is_killed(box, own_queue, worker, jobs, has_ended):
    """60 tasks; one of two workers and then the server are killed: the killed calls alone are made again."""
    short = {"LLM_DEADLINE_S": str(SHORT_DEADLINE_S)}
    worker(**short)
    victim = worker(**short)
    prompts = [f"p{number}" for number in range(60)]
    tasks = submit_all(jobs, prompts)
    box.wait_until(lambda stats: stats["in_flight"] == 10, GIVE_UP_S)
    victim.kill()
    box.wait_until(lambda stats: stats["in_flight"] == 5, GIVE_UP_S)
    own_queue.kill()
    own_queue.start()
    ended = has_ended(tasks)
    assert said_of(ended) == {("completed", "")}
    assert [task.result["text"] for task in ended] == [f"沙盒已收到：「{prompt}」" for prompt in prompts]
    assert 60 <= box.stats()["requests"] <= 65
    client = own_queue.client()
    assert client.zcard("{deepseek}:pending") == client.zcard("{deepseek}:running") == 0


def test_message_lost_between_pop_and_note_costs_nothing(box, own_queue, worker, jobs, has_ended):
    """A worker that was killed when it had taken messages and had noted none: the others' backlog does not hide it."""
    tasks = submit_all(jobs, [f"p{number}" for number in range(40)])
    for _ in range(3):
        assert own_queue.client().rpop(QUEUE)
    worker()
    assert said_of(has_ended(tasks)) == {("completed", "")}
    assert box.stats()["requests"] == 40


def test_server_that_refuses_writes_is_waited_for(own_queue, worker, jobs, has_ended, eventually):
    """A server that takes no writes, as one whose disk is full, costs no worker its life, nor a call its result."""
    only = worker()
    [first] = submit_all(jobs, ["first"])
    assert said_of(has_ended([first])) == {("completed", "")}
    client = own_queue.client()
    client.config_set("min-replicas-to-write", 1)
    eventually(lambda: "NOREPLICAS" in only.output.read_text(), GIVE_UP_S)
    client.config_set("min-replicas-to-write", 0)
    assert said_of(has_ended(submit_all(jobs, ["second"]))) == {("completed", "")}
    assert only.process.poll() is None
    assert "Traceback" not in only.output.read_text()


def test_frozen_server_at_submit_is_503_and_no_ghost(serving, box, own_queue, env, worker, jobs, has_ended):
    """What was refused is never run, neither on a connection that was open nor on a new one; the web serves on."""
    with serving(GUNICORN, **env) as web:
        first = web.post("/api/llm/tasks", {"prompt": "before"})
        assert first.status_code == 202
        own_queue.freeze()
        for _ in range(4):
            answer = web.post("/api/llm/tasks", {"prompt": "ghost"})
            assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        assert web.get("/health").status_code == 200
        own_queue.thaw()
        worker()
        marker = [first.json()["task_id"], *submit_all(jobs, ["after"])]
        assert said_of(has_ended(marker)) == {("completed", "")}
        assert own_queue.client().llen(QUEUE) == 0
        assert box.stats()["requests"] == 2


def test_web_starts_without_its_queue(serving, own_queue, env):
    """Everything else is served; tasks come with the server."""
    own_queue.kill()
    with serving(GUNICORN, **env) as web:
        assert web.post("/api/llm/chat", {"prompt": "x"}).status_code == 200
        assert web.post("/api/llm/tasks", {"prompt": "x"}).status_code == 503
        own_queue.start()

        def accepted():
            return web.post("/api/llm/tasks", {"prompt": "x"}).status_code == 202

        poll_until(accepted)


def poll_until(fact):
    """Asks until it is true."""
    gave_up = threading.Event()
    timer = threading.Timer(GIVE_UP_S, gave_up.set)
    timer.start()
    try:
        while not fact():
            assert not gave_up.wait(0.05), "not true in time"
    finally:
        timer.cancel()


def test_one_key_at_once_is_one_task(serving, env, own_queue):
    """Sixteen submissions on two sync workers."""
    with serving(GUNICORN, **env) as web, ThreadPoolExecutor(16) as threads:
        gate = threading.Barrier(16, timeout=GIVE_UP_S)

        def submit(_):
            gate.wait()
            return web.ask("POST", "/api/llm/tasks", json={"prompt": "x"}, headers={"Idempotency-Key": "k"})

        answers = list(threads.map(submit, range(16)))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["task_id"] for answer in answers}) == 1
        assert own_queue.client().llen(QUEUE) == 1


def test_cancel_frees_the_apis_slot(serving, box, env, worker):
    """DELETE ends a call that hangs; without it the deadline of an hour would hold its slot."""
    hour = {"LLM_DEADLINE_S": "3600"}
    with serving(GUNICORN, **{**env, **hour}) as web:
        worker(**hour)
        box.script([{"fault": "hang"}])
        task_id = web.post("/api/llm/tasks", {"prompt": "x"}).json()["task_id"]
        box.wait_until(lambda stats: stats["in_flight"] == 1, GIVE_UP_S)
        answer = web.ask("DELETE", f"/api/llm/tasks/{task_id}")
        assert answer.json() == {"task_id": task_id, "status": "cancelled"}
        box.wait_until(lambda stats: stats["in_flight"] == 0, GIVE_UP_S)
        assert web.get(f"/api/llm/status/{task_id}").json()["status"] == "cancelled"


def test_waiters_leave_a_thread(serving, env, own_queue):
    """With four threads three requests wait, a fourth is answered at once, and so is the probe."""
    with serving(
        GUNICORN, **{**env, "LLM_DEADLINE_S": "60", "WEB_CONCURRENCY": "1", "WEB_THREADS": "4"}
    ) as web:
        tasks = [web.post("/api/llm/tasks", {"prompt": "x"}).json()["task_id"] for _ in range(3)]
        with ThreadPoolExecutor(3) as threads:
            waiting = [threads.submit(web.get, f"/api/llm/status/{task}?wait=50") for task in tasks]
            client = own_queue.client()
            poll_until(lambda: all(client.hget(f"{{deepseek}}:task:{task}", "watchers") for task in tasks))
            assert web.get("/health").status_code == 200
            assert web.get(f"/api/llm/status/{tasks[0]}?wait=50").json()["status"] == "pending"
            assert not any(each.done() for each in waiting)
            for task in tasks:
                web.ask("DELETE", f"/api/llm/tasks/{task}")
            assert {each.result(GIVE_UP_S).json()["status"] for each in waiting} == {"cancelled"}


def test_stopped_worker_ends_its_tasks_first(box, worker, jobs, has_ended):
    """SIGTERM: what runs is finished, what waits is left to others, and the exit code is 0."""
    stopped = worker()
    tasks = submit_all(jobs, [f"p{number}" for number in range(20)])
    box.wait_until(lambda stats: stats["in_flight"] == 5, GIVE_UP_S)
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.process.wait(GIVE_UP_S) == 0
    worker()
    assert said_of(has_ended(tasks)) == {("completed", "")}
    assert box.stats()["requests"] == 20


def test_worker_shows_its_metrics_and_the_request_id(serving, env, worker, has_ended, tmp_path):
    """On the port that it is given; and its lines carry the id of the request that has submitted."""
    port = free_port()
    with serving(GUNICORN, **env) as web:
        started = worker(WORKER_METRICS=f"127.0.0.1:{port}")
        answer = web.ask(
            "POST", "/api/llm/tasks", json={"prompt": "x"}, headers={"X-Request-ID": "r-20261126a"}
        )
        has_ended([answer.json()["task_id"]])

        def counted():
            with requests.Session() as http:
                http.trust_env = False
                text = http.get(f"http://127.0.0.1:{port}/metrics", timeout=GIVE_UP_S).text
            return 'deepseek_tasks_finished_total{status="completed"} 1.0' in text

        poll_until(counted)
        poll_until(lambda: "status=completed" in started.output.read_text())
        lines = [line for line in started.output.read_text().splitlines() if "[r-20261126a]" in line]
        assert any("method=chat mode=async outcome=ok" in line for line in lines)
        assert any("status=completed" in line for line in lines)


def test_no_secret_is_in_messages_commands_or_logs(serving, box, env, own_queue, worker, has_ended):
    """MONITOR of a whole run, the messages, and all logs: neither a prompt, nor an answer, nor the key."""
    prompts = ["purple elephants dance", "紫色的大象在跳舞"]
    seen, ready = [], threading.Event()

    def watch():
        with own_queue.client().monitor() as monitor:
            ready.set()
            for command in monitor.listen():
                seen.append(repr(command))
                if "the end" in command["command"]:
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert ready.wait(GIVE_UP_S)
    with serving(GUNICORN, **env) as web:
        started = worker()
        box.script([{"fault": "status", "status": 401}])
        answers = [web.post("/api/llm/tasks", {"prompt": prompt}) for prompt in prompts * 2]
        context = {"scene": prompts[0], "laws": [{"code": prompts[1], "enabled": True}]}
        answers.append(web.post("/api/llm/tasks", {"utterance": prompts[0], "context": context}))
        answers.append(web.post("/api/llm/tasks", {"prompt": ""}))
        ended = has_ended([answer.json()["task_id"] for answer in answers[:-1]])
        assert {task.status for task in ended} == {"completed", "failed"}
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(GIVE_UP_S)
        own_queue.client().echo("the end")
        watcher.join(GIVE_UP_S)
        logs = started.output.read_text() + web.output.read_text()
    commands = "\n".join(seen)
    assert "EVALSHA" in commands
    assert "deepseek_client.calls" in logs
    found = {
        word
        for word in (KEY, PASSWORD, *prompts, "沙盒", "elephants", "大象")
        for form in (word, word.encode("unicode_escape").decode(), repr(word.encode())[2:-1])
        if form in commands + logs
    }
    assert found == set()
