"""The record of a task, on a real server."""

import json
import threading
from types import SimpleNamespace

import pytest
import redis
from support.queue_server import PASSWORD, QueueServer

from deepseek_client import QueueUnavailable
from deepseek_client.tasks import scripts
from deepseek_client.tasks.ledger import Begun, Ledger, packed, unpacked

QUEUE, PENDING, RUNNING, UNACKED = (
    f"{{deepseek}}:{name}" for name in ("queue", "pending", "running", "unacked")
)
GRACE_S = 0


@pytest.fixture
def new_ledger():
    """Makes ledgers with room for three tasks."""
    made = []

    def make(server, **options):
        made.append(Ledger(server.url, limit=3, ttl_s=60, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def ledger(queue, new_ledger):
    """One on an empty server."""
    return new_ledger(queue)


def submitted(ledger, prompt="你好", **options):
    """The id of a task that waits."""
    outcome, task_id = ledger.submit("chat", [prompt], "r-1", **options)
    assert outcome == "accepted"
    return task_id


def started(ledger, task_id, run="a", lease_s=60):
    """A run of the task."""
    begun = ledger.start(task_id, run, lease_s, "channel")
    assert isinstance(begun, Begun)
    return begun


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


def test_sweep_leaves_what_has_a_message(ledger):
    """A queue that nobody works at is no loss."""
    for _ in range(3):
        submitted(ledger)
    assert ledger.sweep(GRACE_S) == ledger.sweep(GRACE_S) == []


def lose_message(queue, task_id):
    """What a worker leaves that is killed after it took the message and before it noted it."""
    client = queue.client()
    for message in client.lrange(QUEUE, 0, -1):
        if task_id.encode() in message:
            client.lrem(QUEUE, 1, message)


def test_sweep_finds_a_lost_message_behind_a_backlog(ledger, queue):
    """A task that is older than the next message and held by nobody is sent again, to the front, once."""
    lost, waiting, _ = (submitted(ledger) for _ in range(3))
    lose_message(queue, lost)
    assert ledger.sweep(GRACE_S) == []  # kombu may be about to note it
    [found] = ledger.sweep(GRACE_S)
    assert (found.task_id, found.sends) == (lost, 2)
    assert ledger.resend(found)
    assert lost.encode() in queue.client().lindex(QUEUE, -1)
    assert waiting.encode() in queue.client().lindex(QUEUE, -2)
    assert ledger.sweep(GRACE_S) == ledger.sweep(GRACE_S) == []


def test_sweep_finds_the_last_tasks_message_too(ledger, queue):
    """With an empty queue every task that waits has lost its message."""
    lost = submitted(ledger)
    lose_message(queue, lost)
    ledger.sweep(GRACE_S)
    assert [found.task_id for found in ledger.sweep(GRACE_S)] == [lost]


def test_message_that_a_worker_holds_is_not_lost(ledger, queue):
    """kombu has noted it, and gives it back itself."""
    task_id = submitted(ledger)
    lose_message(queue, task_id)
    queue.client().hset(UNACKED, f"{task_id}.1", "held")
    assert ledger.sweep(GRACE_S) == ledger.sweep(GRACE_S) == []


def test_lost_task_has_its_time_of_grace(ledger, queue):
    """It is not sent again before it has been missing for that long."""
    lose_message(queue, submitted(ledger))
    assert ledger.sweep(1000) == ledger.sweep(1000) == []


def test_task_whose_worker_is_gone_is_sent_again(ledger):
    """After its lease it waits, and the sweeper gives it a message; then another worker has it."""
    task_id = submitted(ledger)
    older = started(ledger, task_id, lease_s=0)
    [found] = ledger.sweep(GRACE_S)
    assert ledger.look(task_id).state == "pending"
    assert ledger.resend(found)
    assert started(ledger, task_id, "b").fence == older.fence + 1


def test_running_task_is_not_swept(ledger):
    """Its lease is its worker."""
    started(ledger, submitted(ledger), lease_s=60)
    assert ledger.sweep(GRACE_S) == ledger.sweep(GRACE_S) == []


def test_task_that_ends_its_workers_is_given_up(ledger):
    """After five starts it has failed, and says so."""
    task_id = submitted(ledger)
    for run in "abcde":
        started(ledger, task_id, run, lease_s=0)
    ledger.sweep(GRACE_S)
    record = ledger.look(task_id)
    assert record.state == "failed"
    assert record.outcome["code"] == "closing"
    assert ledger.start(task_id, "f", 60, "channel") == "failed"


def test_ended_task_is_not_sent_again(ledger, queue):
    """Between the sweep and the message it may have been cancelled."""
    lost = submitted(ledger)
    lose_message(queue, lost)
    ledger.sweep(GRACE_S)
    [found] = ledger.sweep(GRACE_S)
    ledger.cancel(lost)
    assert not ledger.resend(found)
    assert queue.client().llen(QUEUE) == 0


def test_one_process_sweeps_in_a_period(new_ledger, queue):
    """Of two ledgers one may."""
    both = [new_ledger(queue) for _ in range(2)]
    assert sorted(each.may_sweep(60) for each in both) == [False, True]


def test_refused_server_is_unavailable_at_once_for_the_second(new_ledger, own_queue):
    """The first asker meets the closed port; the second is answered without a look, and later ones look again."""
    ledger = new_ledger(own_queue)
    own_queue.kill()
    with pytest.raises(QueueUnavailable) as first:
        submitted(ledger)
    assert first.value.__cause__ is not None
    with pytest.raises(QueueUnavailable) as second:
        submitted(ledger)
    assert second.value.__cause__ is None
    assert 0 < second.value.retry_after_s <= 1.5


def test_frozen_server_runs_nothing_of_what_was_refused(new_ledger, own_queue):
    """A submission that met silence is not there when the server goes on, on a connection that was open before."""
    ledger = new_ledger(own_queue)
    kept = submitted(ledger)
    own_queue.freeze()
    with pytest.raises(QueueUnavailable):
        submitted(ledger)
    own_queue.thaw()
    client = own_queue.client()
    assert client.ping()
    assert [raw.decode() for raw in client.zrange(PENDING, 0, -1)] == [kept]
    assert client.llen(QUEUE) == 1


@pytest.fixture
def deaf(ledger, monkeypatch):
    """The ledger's submissions are done, but their answers are lost."""
    submit = ledger._scripts["SUBMIT"]

    def lose_the_answer(**options):
        submit(**options)
        raise redis.TimeoutError("lost")

    monkeypatch.setitem(ledger._scripts, "SUBMIT", lose_the_answer)
    return ledger


def test_submission_whose_answer_was_lost_is_taken_back(deaf, queue, eventually_available):
    """It was answered 503: nothing of it stays, and a worker that gets its message drops it."""
    with pytest.raises(QueueUnavailable):
        deaf.submit("chat", ["x"], "", key="k", body_hash="b")
    client = queue.client()
    assert eventually_available(lambda: not client.exists(PENDING, "{deepseek}:key:k"))
    assert not client.keys("{deepseek}:task:*")
    [message] = client.lrange(QUEUE, 0, -1)
    assert deaf._client.ping()
    task_id = json.loads(message)["headers"]["id"]
    assert eventually_available(lambda: deaf.start(task_id, "a", 60, "channel")) == "gone"


def test_submission_that_somebody_was_answered_with_stays(deaf, queue, new_ledger):
    """Its key came a second time and was answered 202, before the first one was taken back."""
    add, kept = deaf._withdrawals.add, []
    deaf._withdrawals.add = lambda *arguments: kept.append(arguments)
    with pytest.raises(QueueUnavailable):
        deaf.submit("chat", ["x"], "", key="k", body_hash="b")
    outcome, task_id = new_ledger(queue).submit("chat", ["x"], "", key="k", body_hash="b")
    assert (outcome, [task_id]) == ("repeated", [each for each, _ in kept])
    add(*kept[0])
    while deaf._withdrawals._at_work_pid:
        assert queue.client().zcard(PENDING) == 1
    assert new_ledger(queue).look(task_id).state == "pending"


def test_withdrawal_waits_for_a_server_that_is_away(own_queue, new_ledger, eventually_available):
    """The server dies before the answer, and starts again on its data: the submission is taken back then."""
    ledger = new_ledger(own_queue)
    task_id = submitted(ledger)
    own_queue.kill()
    ledger._withdrawals.add(task_id, "")
    own_queue.start()
    client = own_queue.client()
    assert eventually_available(lambda: not client.exists(f"{{deepseek}}:task:{task_id}"))
    assert client.zcard(PENDING) == 0


def test_full_server_is_unavailable_and_says_so(new_ledger, own_queue):
    """Nothing is half written; who looks is answered."""
    ledger = new_ledger(own_queue)
    task_id = submitted(ledger)
    own_queue.client().config_set("maxmemory", 1)
    with pytest.raises(QueueUnavailable, match="full"):
        submitted(ledger)
    with pytest.raises(QueueUnavailable, match="full"):
        submitted(ledger)
    assert ledger.look(task_id).state == "pending"
    assert own_queue.client().zcard(PENDING) == own_queue.client().llen(QUEUE) == 1


def test_full_server_lets_tasks_go_on(new_ledger, own_queue):
    """It refuses submissions alone: what was accepted is started, watched, finished and cancelled."""
    ledger = new_ledger(own_queue)
    running, waiting, unwanted = (submitted(ledger) for _ in range(3))
    begun = started(ledger, running)
    own_queue.client().config_set("maxmemory", 1)
    assert ledger.look(running, "watcher").state == "started"
    assert ledger.finish(running, begun.fence, "completed", {"result": 1})
    started(ledger, waiting)
    assert ledger.cancel(unwanted).state == "cancelled"
    assert ledger.look(running).outcome == {"result": 1}


def test_restarted_server_has_all_tasks(new_ledger, own_queue, eventually_available):
    """A kill -9 loses nothing that was accepted, and the scripts are loaded anew."""
    ledger = new_ledger(own_queue)
    task_id = submitted(ledger)
    own_queue.kill()
    own_queue.start()
    assert eventually_available(lambda: ledger.look(task_id)).state == "pending"
    assert eventually_available(lambda: ledger.is_genuine(task_id))


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
