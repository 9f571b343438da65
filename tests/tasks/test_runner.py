"""What a worker does with a task, without Celery."""

import logging
import threading
from types import SimpleNamespace

import pytest
from support.patience import GIVE_UP_S

from deepseek_client import CircuitOpen, RateLimited, events, request_id
from deepseek_client.calls.options import current_options
from deepseek_client.tasks.runner import Runner


def in_thread(function, *args):
    """A started thread."""
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def test_task_is_made_by_the_client_of_the_settings(jobs, new_runner, sandbox):
    """The result is the client's own, and the API has been asked once."""
    task = jobs.submit("chat", ("你好",))
    new_runner().run(task.task_id)
    assert jobs.look(task.task_id).result["text"]
    assert sandbox.stats()["requests"] == 1


def test_parse_gets_its_context_as_an_object(jobs, new_runner):
    """Attributes, as the legacy client reads them."""
    seen = []

    def parse(utterance, ctx):
        seen.append((utterance, ctx.player.realm, ctx.laws[0].code))
        return {"intent": "look"}

    context = SimpleNamespace(
        player=SimpleNamespace(realm="r"), laws=[SimpleNamespace(code="c", enabled=True)]
    )
    task = jobs.submit("parse", ("go", context))
    new_runner(SimpleNamespace(parse=parse)).run(task.task_id)
    assert jobs.look(task.task_id).result == {"intent": "look"}
    assert seen == [("go", "r", "c")]


def test_failed_call_is_a_failed_task(jobs, new_runner, sandbox):
    """With the sentence and the code that any caller gets."""
    sandbox.script([{"fault": "status", "status": 402}])
    task = jobs.submit("chat", ("x",))
    new_runner().run(task.task_id)
    found = jobs.look(task.task_id)
    assert (found.status, found.code) == ("failed", "insufficient_balance")
    assert found.error


def test_call_that_was_refused_waits_for_its_turn(jobs, task_settings):
    """An open breaker does not fail the queue: the call is made when the breaker lets it, within the deadline."""
    calls = []

    class Refusing:
        async def chat_async(self, prompt):
            calls.append(current_options().deadline_s)
            if len(calls) == 1:
                raise CircuitOpen("Closed.", retry_after_s=0.01)
            return {"text": "ok"}

    task, runner = jobs.submit("chat", ("x",)), Runner(task_settings, Refusing())
    try:
        runner.run(task.task_id)
    finally:
        runner.close()
    assert jobs.look(task.task_id).status == "completed"
    assert calls[1] < calls[0] <= task_settings.deadline_s


def test_call_that_is_refused_for_long_fails(jobs, task_settings):
    """As when the balance is empty: at once, with the code of the refusal."""

    class Refusing:
        async def chat_async(self, prompt):
            raise CircuitOpen("Closed.", retry_after_s=300)

    task, runner = jobs.submit("chat", ("x",)), Runner(task_settings, Refusing())
    try:
        runner.run(task.task_id)
    finally:
        runner.close()
    assert jobs.look(task.task_id).code == "circuit_open"


def test_retries_are_the_calls_own(jobs, new_runner, sandbox, task_settings):
    """What a second attempt mends is no failure; Celery has no part in it."""
    from dataclasses import replace

    sandbox.script([{"fault": "status", "status": 503}])
    task = jobs.submit("chat", ("x",))
    new_runner(settings=replace(task_settings, max_attempts=2)).run(task.task_id)
    assert jobs.look(task.task_id).status == "completed"


def test_defect_is_a_failed_task_and_tells_nothing(jobs, new_runner, caplog):
    """An exception of the client's own may repeat the prompt: it is in no answer and no line."""

    def chat(prompt):
        raise ValueError(f"cannot do {prompt}")

    task = jobs.submit("chat", ("a secret wish",))
    with caplog.at_level(logging.DEBUG, "deepseek_client.tasks"):
        new_runner(SimpleNamespace(chat=chat)).run(task.task_id)
    found = jobs.look(task.task_id)
    assert (found.status, found.code) == ("failed", "error")
    assert "secret" not in found.error + caplog.text
    assert "ValueError" in caplog.text


def test_result_that_cannot_be_kept_is_a_failed_task(jobs, new_runner):
    """It is not run again for that."""
    calls = []

    def chat(prompt):
        calls.append(prompt)
        return {"text": object()}

    runner, task = new_runner(SimpleNamespace(chat=chat)), jobs.submit("chat", ("x",))
    runner.run(task.task_id)
    runner.run(task.task_id)
    assert jobs.look(task.task_id).status == "failed"
    assert len(calls) == 1


def test_message_that_comes_twice_makes_one_call(jobs, new_runner):
    """Also while the first run is under way."""
    entered, leave = threading.Event(), threading.Event()
    calls = []

    def chat(prompt):
        calls.append(prompt)
        entered.set()
        assert leave.wait(GIVE_UP_S)
        return {"text": "ok"}

    runner = new_runner(SimpleNamespace(chat=chat))
    task = jobs.submit("chat", ("x",))
    first = in_thread(runner.run, task.task_id)
    assert entered.wait(GIVE_UP_S)
    runner.run(task.task_id)
    leave.set()
    first.join(GIVE_UP_S)
    runner.run(task.task_id)
    assert calls == ["x"]
    assert jobs.look(task.task_id).status == "completed"


def test_cancel_ends_the_running_call(jobs, new_runner, sandbox):
    """The call that hangs in the API is ended by the cancellation and by nothing else: its deadline is far away."""
    sandbox.script([{"fault": "hang"}])
    task = jobs.submit("chat", ("x",))
    run = in_thread(new_runner().run, task.task_id)
    sandbox.wait_until(lambda stats: stats["in_flight"] == 1, GIVE_UP_S)
    jobs.cancel(task.task_id)
    run.join(10)
    assert not run.is_alive()
    assert jobs.look(task.task_id).status == "cancelled"
    sandbox.wait_until(lambda stats: stats["in_flight"] == 0, GIVE_UP_S)


def test_cancellation_that_nobody_heard_is_found(jobs, new_runner, sandbox):
    """When the server is heard again, the runner looks at what it runs; a message that came twice hides nothing."""
    sandbox.script([{"fault": "hang"}])
    task, runner = jobs.submit("chat", ("x",)), new_runner()
    run = in_thread(runner.run, task.task_id)
    sandbox.wait_until(lambda stats: stats["in_flight"] == 1, GIVE_UP_S)
    runner.run(task.task_id)
    jobs._opened()._client.hdel(f"{{deepseek}}:task:{task.task_id}", "runner")  # so that nobody is told
    jobs.cancel(task.task_id)
    assert run.is_alive()
    runner._look_again()
    run.join(10)
    assert not run.is_alive()


def test_cancelled_task_is_not_called(jobs, new_runner, sandbox):
    """Its message comes to a worker that drops it."""
    task = jobs.submit("chat", ("x",))
    jobs.cancel(task.task_id)
    new_runner().run(task.task_id)
    assert sandbox.stats()["requests"] == 0


def test_rollback_calls_the_plain_method(jobs, new_runner, task_settings):
    """With USE_ASYNC_DEEPSEEK=0 in the worker's own thread."""
    from dataclasses import replace

    threads = []

    def chat(prompt):
        threads.append(threading.current_thread())
        return {"text": prompt}

    task = jobs.submit("chat", ("x",))
    new_runner(SimpleNamespace(chat=chat), replace(task_settings, use_async=False)).run(task.task_id)
    assert jobs.look(task.task_id).result == {"text": "x"}
    assert threads == [threading.current_thread()]


def test_call_carries_the_id_of_its_request(jobs, new_runner):
    """The one who submitted finds its lines; without an id the task's own stands there. The thread keeps none."""
    seen = []

    def chat(prompt):
        seen.append(request_id.current())
        return {"text": prompt}

    runner = new_runner(SimpleNamespace(chat=chat))
    request_id.accept("r-1")
    first = jobs.submit("chat", ("x",))
    request_id.forget()
    second = jobs.submit("chat", ("x",))
    runner.run(first.task_id)
    runner.run(second.task_id)
    assert seen == ["r-1", second.task_id]
    assert request_id.current() is None


def test_tasks_are_counted_by_their_end(jobs, new_runner):
    """Completed, failed; and what was taken from this run meanwhile is dropped."""
    seen = []

    def hook(event):
        if isinstance(event, events.TaskFinished):
            seen.append(event.status)

    def chat(prompt):
        if prompt == "fail":
            raise RateLimited("Too many.")
        if prompt == "lose":
            jobs._opened()._client.hincrby(f"{{deepseek}}:task:{tasks['lose']}", "fence", 1)
        return {"text": "ok"}

    runner = new_runner(SimpleNamespace(chat=chat))
    tasks = {prompt: jobs.submit("chat", (prompt,)).task_id for prompt in ("go", "fail", "lose")}
    events.subscribe(hook)
    try:
        for task_id in tasks.values():
            runner.run(task_id)
    finally:
        events.unsubscribe(hook)
    assert seen == ["completed", "failed", "dropped"]


def test_result_outlives_an_outage(settings, own_queue, eventually_available):
    """A server that is killed while the API answers gets the result when it is back: nothing is asked twice."""
    from dataclasses import replace

    from deepseek_client import AsyncDeepSeekClient
    from deepseek_client.tasks import Jobs
    from deepseek_client.tasks.runner import Runner

    entered, leave, calls = threading.Event(), threading.Event(), []

    def chat(prompt):
        calls.append(prompt)
        entered.set()
        assert leave.wait(GIVE_UP_S)
        return {"text": "ok"}

    settings = replace(settings, celery_broker_url=own_queue.url)
    client = AsyncDeepSeekClient(client=SimpleNamespace(chat=chat), settings=settings, errors="raise")
    runner, jobs = Runner(settings, client), Jobs(settings)
    try:
        task = jobs.submit("chat", ("x",))
        run = in_thread(runner.run, task.task_id)
        assert entered.wait(GIVE_UP_S)
        own_queue.kill()
        leave.set()
        own_queue.start()
        run.join(GIVE_UP_S)
        assert eventually_available(lambda: jobs.look(task.task_id)).status == "completed"
        assert calls == ["x"]
    finally:
        runner.close()
        jobs.close()


@pytest.mark.parametrize("when", ["before", "between"])
def test_cancel_that_comes_early_is_obeyed(new_runner, when):
    """A run that is cancelled before its call has begun does not begin it in earnest."""
    from deepseek_client.tasks.runner import _Run

    run, cancelled = _Run(), []
    if when == "before":
        run.ended("cancelled")
    run.can_be_cancelled_by(lambda: cancelled.append(True))
    if when == "between":
        run.ended("cancelled")
    assert cancelled == [True]
