"""The console's part on tasks, over a real queue."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
from support.console_samples import disconnect

from deepseek_client.tasks import Jobs
from deepseek_client.tasks.ledger import Ledger
from webapp.console import create_console
from webapp.console.reports import cancelled_report
from webapp.console.sample import Sample
from webapp.console.texts import LANGUAGES, speaker
from webapp.console.watching import Watch


@pytest.fixture
def client(monkeypatch, tmp_path):
    """A console that looks at no server."""
    monkeypatch.chdir(tmp_path)
    watch = Watch(lambda at: Sample(at))
    watch.start = lambda: None
    console = create_console("http://127.0.0.1:9", watch=watch)
    yield console.test_client()
    disconnect(console)


@pytest.fixture
def jobs(settings, queue, monkeypatch):
    """The queue from the side of who submits; the console is told of it."""
    monkeypatch.setenv("CELERY_BROKER_URL", queue.url)
    made = Jobs(replace(settings, celery_broker_url=queue.url))
    yield made
    made.close()


def test_no_queue_no_part(client):
    """Without CELERY_BROKER_URL the page has no such part, and the routes are not there."""
    assert 'id="tasks"' not in client.get("/").text
    assert client.get("/tasks").status_code == 404
    assert client.post("/tasks/cancel", json={"task_id": "x"}).status_code == 404


def test_no_extra_no_part(client, monkeypatch):
    """Without the extra neither."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "redis" else find(name, *more)
    )
    assert 'id="tasks"' not in client.get("/").text
    assert client.get("/tasks").status_code == 404


def test_queue_in_figures_and_rows(client, jobs, queue):
    """What waits, runs and has ended, and each open task with its state, its method and its age; no prompt of one."""
    ledger = Ledger(queue.url, limit=9, ttl_s=60)
    ids = [jobs.submit("chat", ("a-secret-prompt",)).task_id for _ in range(3)]
    begun = [ledger.start(task_id, "a", 60, "channel") for task_id in ids[:2]]
    ledger.finish(ids[0], begun[0].fence, "completed", {"result": "a-secret-answer"})
    ledger.attend("a worker", 60)
    ledger.close()
    assert 'id="tasks"' in client.get("/").text
    answer = client.get("/tasks")
    seen = answer.get_json()
    assert seen["figures"].pop("tasks_oldest").endswith("s")
    assert seen["figures"] == {
        "tasks_queued": "1", "tasks_running": "1", "tasks_completed": "1", "tasks_failed": "0", "tasks_workers": "1",
    }  # fmt: skip
    assert [row[:3] for row in seen["rows"]] == [[ids[1], "running", "chat"], [ids[2], "queued", "chat"]]
    assert "secret" not in answer.text


def test_one_is_cancelled(client, jobs):
    """It ends, and no other one; a second time and of an unknown one there is a sentence."""
    ids = [jobs.submit("chat", ("x",)).task_id for _ in range(2)]
    for _ in range(2):
        assert client.post("/tasks/cancel", json={"task_id": ids[0]}).get_json() == {
            "said": "The task was cancelled."
        }
    assert [jobs.look(task_id).status for task_id in ids] == ["cancelled", "pending"]
    answer = client.post("/tasks/cancel", json={"task_id": "no-such-task"})
    assert answer.get_json() == {"said": "There is no such task any more."}


@pytest.mark.parametrize("body", [[], {}, {"task_id": 5}, {"task_id": None}, "x"])
def test_bodies_that_the_page_does_not_send(client, jobs, body):
    """What names no task is refused."""
    assert client.post("/tasks/cancel", json=body).status_code == 400


def test_another_page_cancels_nothing(client, jobs):
    """A page of another origin, and a form, which can be sent from everywhere, are refused."""
    task = jobs.submit("chat", ("x",))
    body = {"task_id": task.task_id}
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"}
    assert client.post("/tasks/cancel", json=body, headers=foreign).status_code == 403
    assert client.post("/tasks/cancel", data=body).status_code == 415
    assert jobs.look(task.task_id).status == "pending"


@pytest.mark.parametrize("language", LANGUAGES)
def test_server_that_is_away_is_one_sentence(client, monkeypatch, language):
    """The page is there, and a look or a cancellation says in its language that the queue does not answer."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://:a-password@127.0.0.1:1/0")
    client.get(f"/?lang={language}")
    assert client.get("/").status_code == 200
    sentence = speaker(language)("queue_away")
    answer = client.get("/tasks")
    assert answer.get_json() == {"away": sentence, "figures": {}, "rows": []}
    assert "a-password" not in answer.text
    assert client.post("/tasks/cancel", json={"task_id": "x"}).get_json() == {"said": sentence}


def test_silent_server_holds_nothing_else_up(client, own_queue, monkeypatch):
    """A server that stands still is a sentence after a second, and the other figures do not ask it."""
    monkeypatch.setenv("CELERY_BROKER_URL", own_queue.url)
    assert not client.get("/tasks").get_json()["away"]
    own_queue.freeze()
    with monkeypatch.context() as patch:
        patch.setattr("webapp.console.queue.Queue.overview", forbidden)
        assert client.get("/data").status_code == client.get("/").status_code == 200
    assert client.get("/tasks").get_json()["away"]


def forbidden(_):
    """Stands in for what must not be called."""
    raise AssertionError


def test_queue_that_was_changed_in_env_is_found(client, jobs, queue, monkeypatch):
    """The console asks the queue that the settings name now."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    assert client.get("/tasks").get_json()["away"]
    monkeypatch.setenv("CELERY_BROKER_URL", queue.url)
    assert not client.get("/tasks").get_json()["away"]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("status", ["pending", "started", "completed", "failed", "cancelled", "", None])
def test_each_end_is_a_sentence(status, language):
    """Whatever became of a cancellation is told."""
    assert cancelled_report(speaker(language), status)["said"]
