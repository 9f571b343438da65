"""Part tasks: submissions over HTTP while the workers are full, and what workers make of a queue."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import redis

from deepseek_client import Settings
from deepseek_client.tasks import Jobs
from deepseek_client.tasks.broker import Broker

from .plan import TASK_CONNECTIONS, TASK_THREADS
from .servers import WORKERS, running_gunicorn
from .upstream import end
from .wire import KEY, prompts

__all__ = ["measure"]

_TIMEOUT_S = 60
_GIVE_UP_S = 120
_LOOK_EVERY_S = 0.02
_KEYS = ("pending", "running")
_TICKS = os.sysconf("SC_CLK_TCK")


def measure(spec: dict[str, Any]) -> dict[str, float]:
    """Submissions a second, their latency and CPU; or tasks a second and their CPU."""
    with tempfile.TemporaryDirectory() as name, _queue(Path(name) / "queue") as (url, server):
        env = {
            "DEEPSEEK_API_KEY": KEY,
            "DEEPSEEK_BASE_URL": spec["url"],
            "CELERY_BROKER_URL": url,
            "LLM_MAX_WORKERS": str(TASK_THREADS),
            "TASK_QUEUE_LIMIT": "100000",
        }
        jobs = Jobs(Settings.from_env(env))
        with contextlib.closing(jobs), redis.Redis.from_url(url, protocol=2) as client:
            if spec["peer"] == "submit":
                return _submissions(spec, env, jobs, client)
            return _work(spec, env, jobs, client, server)


def _submissions(
    spec: dict[str, Any], env: dict[str, str], jobs: Jobs, client: redis.Redis
) -> dict[str, float]:
    with (
        _workers(1, env) as (worker,),
        running_gunicorn({**env, "WEB_CONCURRENCY": str(WORKERS)}) as (url, web),
    ):
        _submit(jobs, 10 * TASK_THREADS)  # so that the worker is full from the beginning
        asyncio.run(_load(url, 10))
        before_s = sum(map(_cpu_s, _children(web)))
        figures = asyncio.run(_load(url, spec["count"]))
        figures["cpu_ms"] = (sum(map(_cpu_s, _children(web))) - before_s) / spec["count"] * 1000
        if not client.zcard("{deepseek}:pending"):
            raise RuntimeError("the worker was not full")
        end(worker)
    return figures


def _work(
    spec: dict[str, Any], env: dict[str, str], jobs: Jobs, client: redis.Redis, server: int
) -> dict[str, float]:
    with _workers(spec["width"], env) as workers:
        _submit(jobs, 2 * TASK_THREADS * spec["width"])  # modules, connections, leases
        _wait_until_done(client)
        pids, began = [worker.pid for worker in workers], time.perf_counter()
        before_s, server_before_s = sum(map(_cpu_s, pids)), _cpu_s(server)
        ids = _submit(jobs, spec["count"])
        _wait_until_done(client)
        wall_s = time.perf_counter() - began
        cpu_s, server_s = sum(map(_cpu_s, pids)) - before_s, _cpu_s(server) - server_before_s
    failed = sum(jobs.look(task_id).status != "completed" for task_id in ids)
    return {
        "tasks_per_s": (spec["count"] - failed) / wall_s,
        "cpu_ms": cpu_s / spec["count"] * 1000,
        "server_ms": server_s / spec["count"] * 1000,
        "failed": failed,
    }


def _submit(jobs: Jobs, count: int) -> list[str]:
    return [jobs.submit("chat", (prompt,)).task_id for prompt in prompts(count)]


def _wait_until_done(client: redis.Redis) -> None:
    give_up = time.monotonic() + _GIVE_UP_S
    while any(client.zcard(f"{{deepseek}}:{key}") for key in _KEYS):
        if time.monotonic() > give_up:
            raise RuntimeError(f"the tasks were not done after {_GIVE_UP_S} s")
        time.sleep(_LOOK_EVERY_S)


async def _load(url: str, count: int) -> dict[str, float]:
    """`count` submissions over new connections, as sync workers have them."""
    turns, latencies_ms, refusals = iter(prompts(count)), [], []

    async def take_turns(session: aiohttp.ClientSession) -> None:
        for prompt in turns:
            began = time.perf_counter()
            async with session.post(f"{url}/api/llm/tasks", json={"prompt": prompt}) as reply:
                if reply.status != 202:
                    refusals.append(f"{reply.status} {(await reply.text()).strip()[:200]}")
                await reply.read()
            latencies_ms.append((time.perf_counter() - began) * 1000)

    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        began = time.perf_counter()
        await asyncio.gather(*(take_turns(session) for _ in range(TASK_CONNECTIONS)))
        wall_s = time.perf_counter() - began
    if refusals:
        raise RuntimeError(f"{len(refusals)} of {count} submissions were refused: {refusals[0]}")
    percentiles = statistics.quantiles(latencies_ms, n=100, method="inclusive")
    return {"submissions_per_s": count / wall_s, "p50_ms": percentiles[49], "p99_ms": percentiles[98]}


@contextmanager
def _queue(folder: Path) -> Iterator[tuple[str, int]]:
    """The address and the pid of a server that is empty."""
    broker = Broker(folder)
    process = broker.launch()
    ended = threading.Event()

    def sync() -> None:
        while not ended.wait(1):
            broker.sync()

    syncing = threading.Thread(target=sync)
    try:
        broker.wait_until_ready(process)
        syncing.start()
        yield broker.url, process.pid
        ended.set()
        syncing.join()
    finally:
        ended.set()
        broker.stop(process)
        broker.close()


@contextmanager
def _workers(count: int, env: dict[str, str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """That many workers that are ready."""
    with ExitStack() as stack:
        output = stack.enter_context(tempfile.TemporaryDirectory())
        logs = [Path(output) / str(number) for number in range(count)]
        workers = []
        for log in logs:
            with log.open("wb") as stream:
                command = [sys.executable, "-m", "deepseek_client", "worker"]
                worker = subprocess.Popen(command, env={**os.environ, **env}, stdout=stream, stderr=stream)
            stack.callback(end, worker)
            workers.append(worker)
        give_up = time.monotonic() + _GIVE_UP_S
        while not all(re.search(r"\bready\b", log.read_text()) for log in logs):
            if time.monotonic() > give_up or any(worker.poll() is not None for worker in workers):
                raise RuntimeError(f"a worker did not start: {logs[0].read_text().strip()[-200:]}")
            time.sleep(_LOOK_EVERY_S)
        yield workers


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
