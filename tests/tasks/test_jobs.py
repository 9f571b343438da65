"""Submit, poll, wait and cancel, without a worker: what a task becomes is written by the test itself."""

import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.patience import GIVE_UP_S

from deepseek_client import InvalidRequest, Overloaded, QueueUnavailable, Settings, events, request_id
from deepseek_client.tasks import ExpiredTask, Jobs, KeyReused, Overview, UnknownTask
from deepseek_client.tasks.jobs import arguments_of
from deepseek_client.tasks.ledger import Ledger
from deepseek_client.tasks.sweeper import Sweeper


@pytest.fixture
def ledger(queue):
    """The same tasks, from a worker's side."""
    made = Ledger(queue.url, limit=3, ttl_s=60)
    yield made
    made.close()


def finish(ledger, task_id, state="completed", **outcome):
    """Runs a task as a worker would."""
    assert ledger.finish(task_id, ledger.start(task_id, "a", 60, "channel").fence, state, outcome)


def test_submitted_task_is_pending(jobs):
    """It has an id and a status at once."""
    task = jobs.submit("chat", ("你好",))
    assert task.as_json() == {"task_id": task.task_id, "status": "pending"}
    assert jobs.look(task.task_id).status == "pending"


def test_completed_task_has_its_result(jobs, ledger):
    """As the client's method gave it."""
    task = jobs.submit("chat", ("你好",))
    finish(ledger, task.task_id, result={"text": "再见"})
    assert jobs.look(task.task_id).as_json() == {
        "task_id": task.task_id,
        "status": "completed",
        "result": {"text": "再见"},
    }


def test_failed_task_has_its_sentence_and_code(jobs, ledger):
    """As any failed call."""
    task = jobs.submit("chat", ("你好",))
    finish(ledger, task.task_id, "failed", error="Busy.", code="rate_limited")
    assert jobs.look(task.task_id).as_json() == {
        "task_id": task.task_id,
        "status": "failed",
        "error": "Busy.",
        "code": "rate_limited",
    }


@pytest.mark.parametrize("ask", [Jobs.look, Jobs.cancel, lambda jobs, task_id: jobs.wait(task_id, 0)])
def test_task_that_never_was_is_told_from_an_expired_one(jobs, ledger, queue, ask):
    """Nothing is stored for it: the id proves itself."""
    with pytest.raises(UnknownTask):
        ask(jobs, "a" * 32)
    task = jobs.submit("chat", ("你好",))
    finish(ledger, task.task_id, result=1)
    queue.client().delete(f"{{deepseek}}:task:{task.task_id}")
    with pytest.raises(ExpiredTask):
        ask(jobs, task.task_id)


def test_cancelled_task_says_so(jobs):
    """At once, though no worker has heard of it."""
    task = jobs.submit("chat", ("你好",))
    assert jobs.cancel(task.task_id).status == jobs.look(task.task_id).status == "cancelled"


def test_submission_beyond_the_limit_is_refused(jobs):
    """TASK_QUEUE_LIMIT is for what waits."""
    for _ in range(3):
        jobs.submit("chat", ("x",))
    with pytest.raises(Overloaded) as refused:
        jobs.submit("chat", ("x",))
    assert refused.value.retry_after_s


def test_key_is_one_task_or_a_conflict(jobs):
    """Another body under a known key is 409."""
    first = jobs.submit("chat", ("x",), key="a key")
    assert jobs.submit("chat", ("x",), key="a key").task_id == first.task_id
    assert jobs.submit("chat", ("x",)).task_id != first.task_id
    for method, args in (("chat", ("y",)), ("parse", ("x", None))):
        with pytest.raises(KeyReused) as refused:
            jobs.submit(method, args, key="a key")
    assert (refused.value.http_status, refused.value.code) == (409, "invalid_request")


def test_key_of_an_expired_task_says_so(jobs, ledger, queue):
    """It makes no second task: the first one was made, and may have cost money."""
    task = jobs.submit("chat", ("x",), key="a key")
    finish(ledger, task.task_id, result=1)
    queue.client().delete(f"{{deepseek}}:task:{task.task_id}")
    with pytest.raises(ExpiredTask):
        jobs.submit("chat", ("x",), key="a key")


def test_key_finds_what_became_of_its_task(jobs, ledger):
    """A repeated submission is told of the result that there is."""
    task = jobs.submit("chat", ("x",), key="a key")
    finish(ledger, task.task_id, result={"text": "ok"})
    assert jobs.submit("chat", ("x",), key="a key").as_json()["result"] == {"text": "ok"}


@pytest.mark.parametrize("key", ["x" * 256, "ü", "a\nb"])
def test_unusable_key_is_refused(jobs, key):
    """A key is 1 to 255 printable ASCII characters."""
    with pytest.raises(InvalidRequest):
        jobs.submit("chat", ("x",), key=key)


def test_key_itself_is_not_kept(jobs, queue):
    """A caller may have put anything into it."""
    jobs.submit("chat", ("x",), key="someone@example.com")
    assert not [name for name in queue.client().keys("*") if b"someone" in name]


def test_waiter_is_woken_by_the_end(jobs, ledger):
    """It does not wait for its time to be over."""
    task = jobs.submit("chat", ("x",))
    got = []
    waiter = threading.Thread(target=lambda: got.append(jobs.wait(task.task_id, GIVE_UP_S)))
    waiter.start()
    finish(ledger, task.task_id, result=1)
    waiter.join(GIVE_UP_S)
    assert [each.status for each in got] == ["completed"]


def test_waiter_gets_what_has_ended_before(jobs, ledger):
    """It looks after it listens."""
    task = jobs.submit("chat", ("x",))
    finish(ledger, task.task_id, result=1)
    assert jobs.wait(task.task_id, GIVE_UP_S).status == "completed"


def test_waiter_gets_the_task_as_it_is_in_the_end(jobs):
    """When the time is over."""
    task = jobs.submit("chat", ("x",))
    assert jobs.wait(task.task_id, 0.01).status == "pending"


def test_request_id_goes_along(jobs, ledger):
    """A worker's lines carry the id of the request that has submitted."""
    request_id.accept("r-20261126a")
    task = jobs.submit("chat", ("x",))
    request_id.forget()
    assert ledger.start(task.task_id, "a", 60, "channel").request_id == "r-20261126a"


def test_submissions_are_counted(jobs):
    """By what came of them."""
    seen = []
    events.subscribe(seen.append)
    try:
        jobs.submit("chat", ("x",), key="k")
        jobs.submit("chat", ("x",), key="k")
        jobs.submit("chat", ("x",))
        jobs.submit("chat", ("x",))
        with pytest.raises(Overloaded):
            jobs.submit("chat", ("x",))
        with pytest.raises(QueueUnavailable):
            Jobs(Settings()).submit("chat", ("x",))
    finally:
        events.unsubscribe(seen.append)
    outcomes = [event.outcome for event in seen]
    assert outcomes == ["accepted", "repeated", "accepted", "accepted", "overloaded", "queue_unavailable"]


def test_no_queue_is_said():
    """Without CELERY_BROKER_URL every call is refused, and nothing is connected to."""
    jobs = Jobs(Settings())
    for ask in (lambda: jobs.submit("chat", ("x",)), lambda: jobs.look("a"), lambda: jobs.cancel("a")):
        with pytest.raises(QueueUnavailable, match="No queue is configured"):
            ask()


def test_missing_extra_is_said(tmp_path):
    """Without redis-py and Celery the module loads, and a submission names the extra."""
    code = """
import sys
sys.modules.update({"redis": None, "celery": None, "kombu": None})
from deepseek_client import QueueUnavailable, Settings
from deepseek_client.tasks import Jobs
try:
    Jobs(Settings(celery_broker_url="redis://127.0.0.1:1")).submit("chat", ("x",))
except QueueUnavailable as exc:
    print(exc)
"""
    from pathlib import Path

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "extra tasks" in done.stdout, done.stderr


def test_package_loads_neither_celery_nor_redis(tmp_path):
    """An application that queues nothing pays nothing for it."""
    from pathlib import Path

    code = "import sys, deepseek_client.tasks; print({'celery', 'kombu', 'redis'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout == "set()\n", done.stderr


def test_context_goes_as_its_attributes():
    """Objects, dicts and lists become what JSON carries."""
    context = SimpleNamespace(
        scene="s", player=SimpleNamespace(realm="r"), laws=[{"code": "c", "enabled": True}]
    )
    assert arguments_of(("text", context)) == [
        "text",
        {"scene": "s", "player": {"realm": "r"}, "laws": [{"code": "c", "enabled": True}]},
    ]


@pytest.mark.parametrize(
    "value", [object(), b"bytes", {1: 2}, threading.Lock()], ids=["object", "bytes", "dict", "lock"]
)
def test_what_cannot_be_sent_is_refused(value):
    """By name of its class, without its value."""
    with pytest.raises(InvalidRequest):
        arguments_of([value])


def test_overview_of_the_queue(jobs, ledger):
    """What waits, runs and has ended is counted, a cancelled task in none of them, and the oldest is told."""
    assert jobs.overview() == Overview(0, 0, 0, 0, 0.0, 0, ())
    running, waiting, cancelled = (jobs.submit("chat", (text,)).task_id for text in "abc")
    ledger.start(running, "a", 60, "channel")
    jobs.cancel(cancelled)
    finish(ledger, jobs.submit("chat", ("d",)).task_id)
    finish(ledger, jobs.submit("parse", ("e", {})).task_id, "failed", error="Busy.", code="rate_limited")
    seen = jobs.overview()
    assert (seen.queued, seen.running, seen.completed, seen.failed) == (1, 1, 1, 1)
    assert [(task.task_id, task.status, task.method) for task in seen.tasks] == [
        (running, "started", "chat"),
        (waiting, "pending", "chat"),
    ]
    assert 0 < seen.oldest_s <= seen.tasks[0].age_s + 1


def test_overview_names_few_tasks(queue, task_settings, ledger):
    """However many tasks there are, the look names twenty and asks for no others: what runs first, then the oldest."""
    jobs = Jobs(replace(task_settings, task_queue_limit=100))
    ids = [jobs.submit("chat", ("x",)).task_id for _ in range(40)]
    ledger.start(ids[30], "a", 60, "channel")
    client = queue.client()
    client.config_resetstat()
    seen = jobs.overview()
    assert seen.queued == 39
    assert [task.task_id for task in seen.tasks] == [ids[30], *ids[:19]]
    assert (
        client.info("commandstats")["cmdstat_hmget"]["calls"] == 26
    )  # twenty tasks and six times ten minutes
    jobs.close()


def test_overview_counts_worker_processes(jobs, new_runner, eventually_available):
    """A process that sweeps is counted, and no longer once it has not been heard of for three rounds."""
    sweeper = Sweeper(new_runner().ledger, every_s=0.1)
    sweeper.start()
    try:
        assert eventually_available(lambda: jobs.overview().workers) == 1
    finally:
        sweeper.stop()
    eventually_available(lambda: jobs.overview().workers, lambda workers: workers == 0)


def test_counts_of_tasks_that_ended_are_kept_for_an_hour(jobs, ledger, queue):
    """What they are counted in ends by itself."""
    finish(ledger, jobs.submit("chat", ("x",)).task_id)
    [name] = queue.client().keys("{deepseek}:ended:*")
    assert 3600 <= queue.client().ttl(name) <= 4200
