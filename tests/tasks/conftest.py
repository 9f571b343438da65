"""What the tests of tasks share."""

import time
from dataclasses import replace

import pytest
from support.patience import GIVE_UP_S

from deepseek_client import AsyncDeepSeekClient, QueueUnavailable
from deepseek_client.tasks import Jobs, listener
from deepseek_client.tasks.ledger import Ledger
from deepseek_client.tasks.runner import Runner


def until(ask, is_good=bool):
    """The answer once it is good; an outage is waited for."""
    ends_at = time.monotonic() + GIVE_UP_S
    while True:
        try:
            answer = ask()
            if is_good(answer):
                return answer
        except QueueUnavailable:
            answer = "unavailable"
        assert time.monotonic() < ends_at, f"{answer!r} after {GIVE_UP_S} s"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _listeners_leave_soon(monkeypatch):
    """A listener looks whether it is closed once in this time; each of many tests closes one or two."""
    monkeypatch.setattr(listener, "_LISTEN_S", 0.02)
    monkeypatch.setattr(listener, "_SILENCES", 250)


@pytest.fixture
def eventually_available():
    """Asks until the queue answers."""
    return until


@pytest.fixture
def task_settings(settings, queue):
    """Settings whose calls go to the sandbox and whose tasks go to an empty server."""
    return replace(settings, celery_broker_url=queue.url, task_queue_limit=3, task_result_ttl_s=60)


@pytest.fixture
def jobs(task_settings):
    """The queue from the side of who submits."""
    made = Jobs(task_settings)
    yield made
    made.close()


@pytest.fixture
def new_runner(task_settings):
    """Makes runners whose client is given, or the one of the settings."""
    made = []

    def make(client=None, settings=task_settings):
        client = AsyncDeepSeekClient(client=client, settings=settings, errors="raise")
        made.append(Runner(settings, client))
        return made[-1]

    yield make
    for each in made:
        each.close()


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
