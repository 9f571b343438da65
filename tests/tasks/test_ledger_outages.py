"""The record of a task while its server is away, frozen, full or started again."""

import json
from threading import Event
from types import SimpleNamespace

import pytest
import redis
from support.ledgers import PENDING, QUEUE, started, submitted
from support.patience import GIVE_UP_S

from deepseek_client import QueueUnavailable
from deepseek_client.tasks.withdrawals import Withdrawals


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


def test_connection_of_a_withdrawal_is_closed_by_its_thread():
    """To close it under the thread that reads an answer would end that thread with an error."""
    withdrawals, begun, answer, closed = Withdrawals("redis://localhost", 1), Event(), Event(), Event()
    withdrawals._client = SimpleNamespace(
        eval=lambda *_: begun.set() or answer.wait(GIVE_UP_S), close=closed.set
    )
    withdrawals.add("task", "")
    assert begun.wait(GIVE_UP_S)
    withdrawals.close()
    assert not closed.is_set()
    answer.set()
    assert closed.wait(GIVE_UP_S)


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
