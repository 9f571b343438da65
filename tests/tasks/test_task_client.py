"""The client whose calls a worker makes."""

import asyncio
import os
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.patience import GIVE_UP_S

from deepseek_client import (
    DeadlineExceeded,
    InsufficientBalance,
    InvalidRequest,
    PoolClosed,
    QueueUnavailable,
    Settings,
    call_options,
    events,
)
from deepseek_client.tasks import TaskClient, client


class Worker(threading.Thread):
    """Takes messages and runs them in order, until it is told to stop."""

    def __init__(self, runner, queue):
        super().__init__(daemon=True)
        self.runner, self.queue, self.stopped = runner, queue, threading.Event()

    def run(self):
        while not self.stopped.is_set():
            for key in self.queue.client().zrange("{deepseek}:pending", 0, 0):
                self.runner.run(key.decode())
            self.stopped.wait(0.01)


async def waiting_task(queue):
    """The id of the task that waits, once there is one."""
    ends_at = time.monotonic() + GIVE_UP_S
    while time.monotonic() < ends_at:
        for raw in queue.client().zrange("{deepseek}:pending", 0, 0):
            return raw.decode()
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was submitted")


@pytest.fixture
def work(new_runner, queue):
    """Starts a worker with a client."""
    workers = []

    def start(**methods):
        workers.append(Worker(new_runner(SimpleNamespace(**methods) if methods else None), queue))
        workers[-1].start()

    yield start
    for worker in workers:
        worker.stopped.set()
        worker.join(GIVE_UP_S)


@pytest.fixture
def task_client(task_settings):
    """A client of the same settings."""
    made = TaskClient(replace(task_settings, deadline_s=GIVE_UP_S))
    yield made
    made.close()


async def test_chat_gives_what_the_worker_got(task_client, work):
    """As the client's own chat_async gives it."""
    work()
    assert (await task_client.chat_async("你好"))["text"]


async def test_parse_gives_what_the_worker_got(task_client, work):
    """The context is an object, here and there."""
    work(parse=lambda utterance, ctx: {"intent": utterance + ctx.scene})
    assert await task_client.parse_async("go", SimpleNamespace(scene="!")) == {"intent": "go!"}


async def test_many_at_once_get_their_own(task_client, work, task_settings):
    """Each awaits its own task."""
    work(chat=lambda prompt: {"text": prompt})
    prompts = [str(number) for number in range(3)]
    answers = await asyncio.gather(*map(task_client.chat_async, prompts))
    assert [answer["text"] for answer in answers] == prompts


async def test_failure_is_raised_as_it_was(task_client, work):
    """The class of its code, with its sentence."""

    def chat(prompt):
        raise InsufficientBalance("No money.")

    work(chat=chat)
    with pytest.raises(InsufficientBalance, match="No money"):
        await task_client.chat_async("x")


async def test_deadline_cancels_the_task(task_client, queue):
    """The time in the queue counts: nobody works here, and nobody will."""
    with call_options(deadline_s=1.0), pytest.raises(DeadlineExceeded):
        await task_client.chat_async("x")
    [record] = queue.client().keys("{deepseek}:task:*")
    assert queue.client().hget(record, "state") == b"cancelled"


@pytest.mark.parametrize("deadline_s", [None, 0.2], ids=["cancelled", "deadline"])
async def test_given_up_while_it_submits(task_client, queue, monkeypatch, deadline_s):
    """A submission that is under way when nobody waits any more is cancelled as soon as it is there."""
    submit, begun, may_go_on = task_client._jobs.submit, threading.Event(), threading.Event()

    def submit_late(*args):
        begun.set()
        may_go_on.wait(GIVE_UP_S)
        return submit(*args)

    monkeypatch.setattr(task_client._jobs, "submit", submit_late)
    with call_options(deadline_s=deadline_s):
        waiting = asyncio.ensure_future(task_client.chat_async("x"))
        await asyncio.to_thread(begun.wait, GIVE_UP_S)
    if deadline_s is None:
        waiting.cancel()
        asyncio.get_running_loop().call_soon(may_go_on.set)
    else:
        asyncio.get_running_loop().call_later(2 * deadline_s, may_go_on.set)
    with pytest.raises(asyncio.CancelledError if deadline_s is None else DeadlineExceeded):
        await waiting
    [record] = queue.client().keys("{deepseek}:task:*")
    assert queue.client().hget(record, "state") == b"cancelled"


async def test_cancelled_await_cancels_the_task(task_client, queue):
    """Nobody pays for what nobody waits for."""
    waiting = asyncio.ensure_future(task_client.chat_async("x"))
    await waiting_task(queue)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    [record] = queue.client().keys("{deepseek}:task:*")
    assert queue.client().hget(record, "state") == b"cancelled"


async def test_cancelled_as_it_is_submitted(task_client, queue, monkeypatch):
    """A cancellation in the moment in which the submission is answered is not lost, and cancels the task."""

    async def run(function, *args):
        answer = function(*args)
        if not waiting.is_cancelled:
            waiting.is_cancelled = True
            asyncio.get_running_loop().call_soon(waiting.task.cancel)
        return answer

    waiting = SimpleNamespace(is_cancelled=False)
    monkeypatch.setattr(task_client._threads, "run", run)
    waiting.task = asyncio.ensure_future(task_client.chat_async("x"))
    with pytest.raises(asyncio.CancelledError):
        await waiting.task
    [record] = queue.client().keys("{deepseek}:task:*")
    assert queue.client().hget(record, "state") == b"cancelled"


async def test_task_that_somebody_cancels_raises(task_client, queue, jobs):
    """Who awaits it is not left to wait."""
    waiting = asyncio.ensure_future(task_client.chat_async("x"))
    jobs.cancel(await waiting_task(queue))
    with pytest.raises(PoolClosed):
        await asyncio.wait_for(waiting, GIVE_UP_S)


@pytest.mark.parametrize("prompt", [None, 7, "x" * 20_001])
async def test_unusable_prompt_is_not_submitted(task_client, queue, prompt):
    """LLM_PROMPT_LIMIT holds before anything is written."""
    with pytest.raises(InvalidRequest):
        await task_client.chat_async(prompt)
    assert queue.client().keys("*") == []


def test_celery_way_of_asking_gives_an_id_at_once(task_client, jobs):
    """{"task_id", "status": "pending"}."""
    answer = task_client.chat_async_celery("你好")
    assert answer == {"task_id": answer["task_id"], "status": "pending"}
    assert jobs.look(answer["task_id"]).status == "pending"


def test_function_uses_the_environment(monkeypatch, queue):
    """`chat_async_celery(prompt)` needs nothing but CELERY_BROKER_URL."""
    monkeypatch.setattr(client, "_default", None)
    monkeypatch.setenv("CELERY_BROKER_URL", queue.url)
    assert client.chat_async_celery("x")["status"] == "pending"
    client._default.close()
    monkeypatch.setattr(client, "_default", None)


async def give_up_soon(task_client):
    """A task that nobody runs."""
    with call_options(deadline_s=0.2), pytest.raises(DeadlineExceeded):
        await task_client.chat_async("x")


async def test_its_threads_are_no_pool(task_client):
    """The counts, and the advice on LLM_MAX_WORKERS, are of pools that make calls."""
    seen = []
    events.subscribe(seen.append)
    try:
        await give_up_soon(task_client)
    finally:
        events.unsubscribe(seen.append)
    assert [event for event in seen if isinstance(event, events.PoolChanged)] == []


def test_forked_child_has_threads_of_its_own(task_client):
    """Those of the parent, which wait for work, are not there."""
    asyncio.run(give_up_soon(task_client))
    if (pid := os.fork()) == 0:
        try:
            asyncio.run(asyncio.wait_for(give_up_soon(task_client), GIVE_UP_S))
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


async def test_client_without_a_queue_says_so():
    """At the first call."""
    with pytest.raises(QueueUnavailable):
        await TaskClient(Settings()).chat_async("x")
