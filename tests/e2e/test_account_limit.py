"""One limit for the account: real processes, a real server, and the sandbox's own count of what is in flight."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from support.patience import GIVE_UP_S
from support.queue_server import QueueServer

from deepseek_client.sandbox import RunningSandbox, SandboxConfig, running

ROOT = Path(__file__).parents[2]
LIMIT, PROCESSES, THREADS = 10, 3, 20
SHARE = LIMIT // PROCESSES
BEATS = "{deepseek}:lease:beats"

# Calls for ever, each with the process's own number as its prompt, until its standard input is closed.
CALLS = """
import sys, threading
from deepseek_client import AsyncDeepSeekClient

client, over = AsyncDeepSeekClient(errors="raise"), threading.Event()

def call():
    while not over.is_set():
        client.chat(sys.argv[1])

threads = [threading.Thread(target=call) for _ in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
"""


class Calling:
    """Processes that make calls under one limit, and what the sandbox sees of them."""

    def __init__(self, sandbox: RunningSandbox, queue: QueueServer) -> None:
        self.sandbox = sandbox
        self.queue = queue
        self.processes: list[subprocess.Popen[bytes]] = []
        self.beats = redis.Redis.from_url(queue.url)
        # A process of before: no start of an empty server, at which each keeps to its share for three seconds.
        self.beats.zadd(BEATS, {"of-before": 1000 * time.time()})

    def start(self) -> None:
        """One more process."""
        number = str(len(self.processes))
        command = [sys.executable, "-W", "error", "-c", CALLS, number, str(THREADS)]
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "DEEPSEEK_API_KEY": "sk-test", "LLM_DEADLINE_S": str(GIVE_UP_S),
            "DEEPSEEK_BASE_URL": self.sandbox.url, "CELERY_BROKER_URL": self.queue.url,
            "LLM_ACCOUNT_LIMIT": str(LIMIT), "LLM_MAX_WORKERS": str(THREADS), "LLM_MAX_ATTEMPTS": "1",
        }  # fmt: skip
        self.processes.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE))

    def answered(self, times: int) -> Counter[str]:
        """Whose calls were made until each process that lives has made so many more, from now on."""
        made: Counter[str] = Counter()
        alive = [str(number) for number, process in enumerate(self.processes) if process.poll() is None]
        seen = self.sandbox.stats()["requests"]

        def enough(stats: dict[str, object]) -> bool:
            nonlocal seen
            if stats["requests"] != seen:
                seen = stats["requests"]
                body = stats["last_request_body"]
                if isinstance(body, dict):
                    made[body["messages"][-1]["content"]] += 1
            return all(made[number] >= times for number in alive)

        self.sandbox.wait_until(enough, GIVE_UP_S)
        return made

    def full(self) -> None:
        """Waits until the limit is reached."""
        self.sandbox.wait_until(lambda stats: stats["in_flight"] == LIMIT, GIVE_UP_S)

    def peak(self) -> int:
        """The most calls in flight at once since the last `reset`."""
        return int(self.sandbox.stats()["peak_in_flight"])

    def end(self) -> None:
        """Lets every process finish; each must end well."""
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process in self.processes:
            assert process.wait(GIVE_UP_S) in (0, -9)


@pytest.fixture
def calling(tmp_path: Path) -> Iterator[Calling]:
    queue = QueueServer(tmp_path, appendonly="no")  # with it dies what it knew
    with running(SandboxConfig(port=0, latency_ms=50)) as sandbox:
        made = Calling(sandbox, queue)
        try:
            for _ in range(PROCESSES):
                made.start()
            yield made
        finally:
            for process in made.processes:
                process.kill()
                process.wait(GIVE_UP_S)
                process.stdin.close()
            made.beats.close()
            queue.close()


def test_all_processes_together_stay_under_the_limit(calling):
    """Three processes of 20 threads never have more than 10 in flight, also when one is killed; the rest get its part.

    Nobody waits for ever, and no process gets more than twice what another gets.
    """
    calling.answered(1)  # by when each has begun
    made = calling.answered(10)
    assert max(made.values()) <= 2 * min(made.values()), made
    calling.processes[0].kill()
    calling.processes[0].wait(GIVE_UP_S)
    calling.sandbox.wait_until(lambda stats: stats["in_flight"] < LIMIT, GIVE_UP_S)
    calling.full()
    calling.answered(10)
    assert calling.peak() == LIMIT
    calling.end()


@pytest.mark.parametrize("outage", ["killed", "frozen"])
def test_calls_go_on_without_the_server_within_shares(calling, eventually, outage):
    """When the server dies, or freezes, each process may have its share more than it had, and calls go on.

    When it is back the limit holds again for all.
    """
    calling.full()
    calling.answered(5)  # by when each knows of the others
    if outage == "killed":
        calling.queue.kill()
        calling.answered(10)
        calling.queue.start()
        eventually(lambda: calling.beats.zcard(BEATS) == PROCESSES, GIVE_UP_S)
    else:
        calling.queue.freeze()
        calling.answered(10)
        calling.queue.thaw()
        calling.answered(10)  # by when each has joined again
    assert calling.peak() <= LIMIT + PROCESSES * SHARE
    calling.answered(5)  # by when those of the outage have ended
    calling.sandbox.reset()
    calling.answered(10)
    assert calling.peak() <= LIMIT
    calling.end()
