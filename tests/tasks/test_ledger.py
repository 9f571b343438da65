"""The record of a task, on a real server."""

import threading
from types import SimpleNamespace

from support.ledgers import GRACE_S, PENDING, QUEUE, RUNNING, started, submitted
from support.queue_server import PASSWORD, QueueServer

from deepseek_client.tasks import scripts
from deepseek_client.tasks.ledger import Begun, packed, unpacked


def test_submission_writes_a_record_and_a_message(ledger, queue):
    """After it the task is pending, and its message is in the queue."""
    task_id = submitted(ledger)
    assert ledger.look(task_id).state == "pending"
    assert queue.client().llen(QUEUE) == queue.client().zcard(PENDING) == 1


def test_start_gives_what_was_submitted(ledger):
    """Method, arguments and the request's id come as they were given."""
    assert started(ledger, submitted(ledger)) == Begun(1, "chat", ["你好"], "r-1")
    assert ledger.start("unknown", "a", 60, "channel") == "gone"


def test_two_workers_do_not_have_one_task(ledger):
    """A message that comes twice starts one run."""
    task_id = submitted(ledger)
    started(ledger, task_id)
    assert ledger.start(task_id, "b", 60, "channel") == "running"


def test_start_may_be_asked_again(ledger):
    """A worker whose answer was lost asks again and has the same run, not a second one."""
    task_id = submitted(ledger)
    assert started(ledger, task_id) == started(ledger, task_id)


def test_task_whose_lease_is_over_gets_a_new_fence(ledger):
    """What the older run says at its end is dropped; the newer one's end counts."""
    task_id = submitted(ledger)
    older = started(ledger, task_id, "a", lease_s=0)
    newer = started(ledger, task_id, "b")
    assert newer.fence == older.fence + 1
    assert not ledger.finish(task_id, older.fence, "completed", {"result": "old"})
    assert ledger.look(task_id).state == "started"
    assert ledger.finish(task_id, newer.fence, "completed", {"result": "new"})
    assert ledger.look(task_id)[:2] == ("completed", {"result": "new"})


def test_result_counts_while_nobody_else_has_the_task(ledger):
    """A run whose lease was over when it ended, while the task waits for another one: its result is as good."""
    task_id = submitted(ledger)
    begun = started(ledger, task_id, lease_s=0)
    ledger.sweep(GRACE_S)
    assert ledger.finish(task_id, begun.fence, "completed", {"result": 1})
    assert ledger.look(task_id).state == ledger.start(task_id, "b", 60, "channel") == "completed"


def test_finish_may_be_told_again(ledger):
    """A worker whose answer was lost tells it again; the record stays what it was."""
    task_id = submitted(ledger)
    begun = started(ledger, task_id)
    assert ledger.finish(task_id, begun.fence, "completed", {"result": 1})
    assert ledger.finish(task_id, begun.fence, "completed", {"result": 2})
    assert ledger.look(task_id).outcome == {"result": 1}


def test_ended_task_is_not_started(ledger):
    """A message that comes late changes nothing."""
    task_id = submitted(ledger)
    ledger.finish(task_id, started(ledger, task_id).fence, "failed", {"error": "No.", "code": "bad_reply"})
    assert ledger.start(task_id, "b", 60, "channel") == "failed"


def test_ended_task_keeps_its_result_and_loses_its_prompt(ledger, queue):
    """Its record lasts for the time that is set, without the body."""
    task_id = submitted(ledger)
    ledger.finish(task_id, started(ledger, task_id).fence, "completed", {"result": 1})
    record = f"{{deepseek}}:task:{task_id}"
    assert 0 < queue.client().ttl(record) <= 60
    assert not queue.client().hexists(record, "body")
    assert queue.client().zcard(RUNNING) == 0


def test_cancelled_task_is_never_started(ledger):
    """It is cancelled at once, and its message is worth nothing."""
    task_id = submitted(ledger)
    assert ledger.cancel(task_id).state == "cancelled"
    assert ledger.start(task_id, "a", 60, "channel") == "cancelled"


def test_cancelled_run_ends_in_vain(ledger):
    """Its result is dropped."""
    task_id = submitted(ledger)
    begun = started(ledger, task_id)
    assert ledger.cancel(task_id).state == "cancelled"
    assert not ledger.finish(task_id, begun.fence, "completed", {"result": 1})
    assert ledger.look(task_id)[:2] == ("cancelled", {})


def test_ended_task_is_left_as_it_is(ledger):
    """A cancellation comes too late and says what there is."""
    task_id = submitted(ledger)
    ledger.finish(task_id, started(ledger, task_id).fence, "completed", {"result": 1})
    assert ledger.cancel(task_id)[:2] == ("completed", {"result": 1})


def test_limit_counts_what_waits(ledger):
    """One more than may wait is refused; a started one makes room."""
    first, *_ = (submitted(ledger) for _ in range(3))
    assert ledger.submit("chat", ["x"], "")[0] == "full"
    started(ledger, first)
    submitted(ledger)


def test_messages_of_cancelled_tasks_are_bounded(ledger, queue):
    """Who submits and cancels for ever is refused in the end."""
    outcomes = set()
    for _ in range(150):
        outcome, task_id = ledger.submit("chat", ["x"], "")
        outcomes.add(outcome)
        ledger.cancel(task_id)
    assert outcomes == {"accepted", "full"}
    assert queue.client().llen(QUEUE) <= 106


def test_key_makes_one_task(ledger, queue):
    """The same key and body again is the same task; another body is refused, and writes nothing."""
    task_id = submitted(ledger, key="k", body_hash="b")
    assert ledger.submit("chat", ["你好"], "", key="k", body_hash="b") == ("repeated", task_id)
    assert ledger.submit("chat", ["x"], "", key="k", body_hash="other")[0] == "other body"
    assert queue.client().llen(QUEUE) == 1
    assert 86_000 < queue.client().ttl("{deepseek}:key:k") <= 86_400


def test_two_submissions_of_one_key_at_once_are_one_task(new_ledger, queue):
    """Sixteen threads, sixteen connections, one id."""
    gate, ids = threading.Barrier(16, timeout=20), []

    def submit():
        each = new_ledger(queue)
        gate.wait()
        ids.append(each.submit("chat", ["x"], "", key="k", body_hash="b")[1])

    threads = [threading.Thread(target=submit) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(ids) == 16
    assert len(set(ids)) == 1
    assert queue.client().llen(QUEUE) == 1


def test_what_comes_too_late_is_not_done(ledger, queue):
    """The server does nothing after the moment that the submission names."""
    script = queue.client().register_script(scripts.SUBMIT)
    arguments = ["id", 1, 10, "chat", packed(["x"]), "", b"message", "", "", 10]
    assert script(keys=["{deepseek}:queue"], args=arguments) == [b"late"]
    assert queue.client().keys("*") == []


def test_ledger_learns_the_servers_clock_again(new_ledger, queue):
    """Our clock may be anything, and the server's may be set: the first submission after that is accepted, too."""
    now = [-5000.0]
    ledger = new_ledger(queue, clock=lambda: now[0])
    submitted(ledger)
    now[0] -= 30  # as if the server's clock had been set forward
    submitted(ledger)


def test_watching_process_is_told_once(ledger, queue):
    """Who waits for a task hears of its end on the channel that it gave."""
    task_id = submitted(ledger)
    with queue.client().pubsub(ignore_subscribe_messages=False) as subscription:
        subscription.subscribe("mine")
        assert subscription.get_message(timeout=20)["type"] == "subscribe"
        ledger.look(task_id, "mine")
        ledger.look(task_id, "mine")
        ledger.finish(task_id, started(ledger, task_id).fence, "completed", {"result": 1})
        assert subscription.get_message(timeout=20)["data"].decode() == f"{task_id} completed"
        assert subscription.get_message(timeout=0.1) is None


def test_server_is_reached_over_a_unix_socket(tmp_path_factory, new_ledger):
    """By the address that kombu has for it, password and database included."""
    directory = tmp_path_factory.mktemp("q")
    server = QueueServer(directory, unixsocket=str(directory / "s"))
    try:
        ledger = new_ledger(SimpleNamespace(url=f"redis+socket://:{PASSWORD}@{directory}/s?virtual_host=3"))
        submitted(ledger)
        assert {name: each["keys"] for name, each in server.client().info("keyspace").items()} == {"db3": 4}
    finally:
        server.close()


def test_prompt_cannot_be_read_in_the_servers_commands():
    """What is kept holds no run of the text's characters, in whatever script it is written."""
    for text in ("ordinary words in a row", "你好，世界，你好", "x7Gq!zR4#kW9@pL2"):
        raw = packed([text])
        assert unpacked(raw) == [text]
        for start in range(len(text) - 3):
            assert text[start : start + 4].encode() not in raw
