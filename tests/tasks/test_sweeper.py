"""The sweeper, and that it needs nobody who asks it."""

from deepseek_client import events
from deepseek_client.tasks.sweeper import Sweeper


def test_lost_task_is_sent_again_and_counted(jobs, new_runner, queue):
    """The message is in the queue again, one event says so, and a worker that gets it runs the task."""
    seen = []
    task = jobs.submit("chat", ("x",))
    client = queue.client()
    client.delete("{deepseek}:queue")
    runner = new_runner()
    sweeper = Sweeper(runner.ledger, grace_s=0)
    events.subscribe(seen.append)
    try:
        assert [sweeper.sweep(), sweeper.sweep(), sweeper.sweep()] == [0, 1, 0]
    finally:
        events.unsubscribe(seen.append)
    assert [type(event) for event in seen] == [events.TaskRequeued]
    assert client.llen("{deepseek}:queue") == 1
    runner.run(task.task_id)
    assert jobs.look(task.task_id).status == "completed"


def test_sweeper_sweeps_by_itself(jobs, new_runner, queue, eventually_available):
    """Once it was started."""
    jobs.submit("chat", ("x",))
    queue.client().delete("{deepseek}:queue")
    sweeper = Sweeper(new_runner().ledger, every_s=0.05, grace_s=0)
    sweeper.start()
    try:
        assert eventually_available(lambda: queue.client().llen("{deepseek}:queue")) == 1
    finally:
        sweeper.stop()


def test_oldest_lost_task_is_taken_first(jobs, new_runner, queue):
    """Several that were lost come back in their order."""
    ids = [jobs.submit("chat", ("x",)).task_id for _ in range(3)]
    client = queue.client()
    client.delete("{deepseek}:queue")
    sweeper = Sweeper(new_runner().ledger, grace_s=0)
    sweeper.sweep()
    assert sweeper.sweep() == 3
    order = [client.rpop("{deepseek}:queue") for _ in ids]
    assert [task_id for raw in order for task_id in ids if task_id.encode() in raw] == ids
