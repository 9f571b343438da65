"""The sweep: which tasks have lost their message or their worker, and which have not; on a real server."""

from support.ledgers import GRACE_S, QUEUE, UNACKED, started, submitted


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
