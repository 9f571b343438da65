"""Part d: web servers with two workers, under a load generator. This process is the load, the server is its child."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import aiohttp

from .upstream import ROOT, end
from .wire import KEY, is_answer, prompts

__all__ = ["BATCH", "CONNECTIONS", "THREADS", "WORKERS", "measure", "running_gunicorn"]

WORKERS = 2
CONNECTIONS = 50
THREADS = CONNECTIONS // WORKERS
BATCH = 50
_WARM_UP = 10
_START_S = 30
_TIMEOUT_S = 60


class _Server(NamedTuple):
    """How one is started and asked; `options` go to gunicorn."""

    path: str = "/api/llm/chat"
    env: dict[str, str] = {}  # noqa: RUF012  # nobody changes it
    options: tuple[str, ...] = ()
    connections: int = CONNECTIONS
    batch: int = 0


_SERVERS = {
    "sync, sync view": _Server("/api/llm/chat/sync"),
    "sync, async view": _Server(),
    "gthread": _Server(env={"WEB_THREADS": str(THREADS), "LLM_MAX_WORKERS": str(THREADS)}),
    "gevent": _Server(env={"USE_ASYNC_DEEPSEEK": "0"}, options=("--worker-class", "gevent")),
    "quart": _Server(),
    "batch": _Server("/api/llm/batch", {"LLM_MAX_WORKERS": str(BATCH)}, connections=2 * WORKERS, batch=BATCH),
}


def measure(spec: dict[str, Any]) -> dict[str, float]:
    """Prompts per second of `count` requests, and the latency of a request."""
    kind = _SERVERS[spec["peer"]]
    with _running(spec, kind) as url:
        asyncio.run(_load(url, kind, _WARM_UP))
        return asyncio.run(_load(url, kind, spec["count"]))


async def _load(url: str, kind: _Server, count: int) -> dict[str, float]:
    turns, latencies_ms, refusals = iter(prompts(count)), [], []

    async def take_turns(session: aiohttp.ClientSession) -> None:
        for prompt in turns:
            began = time.perf_counter()
            try:
                refusal = await _refusal(session, url + kind.path, prompt, kind.batch)
            except (aiohttp.ClientError, asyncio.TimeoutError) as exc:
                refusal = repr(exc)
            latencies_ms.append((time.perf_counter() - began) * 1000)
            if refusal:
                refusals.append(refusal)

    connector = aiohttp.TCPConnector(limit=kind.connections)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter()
        await asyncio.gather(*(take_turns(session) for _ in range(kind.connections)))
        wall_s = time.perf_counter() - began
    if len(refusals) == count:
        raise RuntimeError(f"none of {count} requests was answered: {refusals[0]}")
    percentiles = statistics.quantiles(latencies_ms, n=100, method="inclusive")
    prompts_done = (count - len(refusals)) * (kind.batch or 1)
    return {
        "prompts_per_s": prompts_done / wall_s,
        "p50_ms": percentiles[49],
        "p99_ms": percentiles[98],
        "failed": len(refusals),
    }


async def _refusal(session: aiohttp.ClientSession, url: str, prompt: str, batch: int) -> str:
    """What came instead of the answer, or of one of a batch; "" when it is the right one."""
    texts = [f"{prompt} {number}" for number in range(batch)] or [prompt]
    body = {"requests": [{"prompt": text} for text in texts]} if batch else {"prompt": prompt}
    async with session.post(url, json=body) as reply:
        if reply.status != 200:
            return f"{reply.status} {(await reply.text()).strip()[:200]}"
        answer = await reply.json()
    results = answer["results"] if batch else [answer]
    wrong = [
        result for result, text in zip(results, texts, strict=True) if not is_answer(result.get("text"), text)
    ]
    return f"{wrong[0]!r:.200}" if wrong else ""


@contextmanager
def _running(spec: dict[str, Any], kind: _Server) -> Iterator[str]:
    """The server's address once it answers."""
    env = {
        "WEB_CONCURRENCY": str(WORKERS),
        "DEEPSEEK_API_KEY": KEY,
        "DEEPSEEK_BASE_URL": spec["url"],
        **kind.env,
    }
    if spec["peer"] == "quart":
        port = _free_port()
        command = ["uvicorn", "bench.quart_app:app", "--port", str(port), "--workers", str(WORKERS)]
        command += ["--no-access-log", "--log-level", "warning"]
        with _started(command, port, env) as (url, _):
            yield url
    else:
        with running_gunicorn(env, kind.options) as (url, _):
            yield url


@contextmanager
def running_gunicorn(env: dict[str, str], options: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    """The address of our application once it answers, and the pid of its master."""
    port, config = _free_port(), str(ROOT / "webapp" / "gunicorn.conf.py")
    with _started(["gunicorn", "-c", config, *options, "webapp.wsgi:app"], port, env) as server:
        yield server


@contextmanager
def _started(command: list[str], port: int, env: dict[str, str]) -> Iterator[tuple[str, int]]:
    env = {**os.environ, "HOST": "127.0.0.1", "PORT": str(port), **env}
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen([sys.executable, "-m", *command], env=env, stdout=output, stderr=output)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, server, output)
            yield url, server.pid
        finally:
            end(server)


def _wait_for(url: str, server: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    give_up = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < give_up:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=_START_S):
                return
        except OSError:  # not yet
            time.sleep(0.05)
    output.seek(0)
    last = output.read().decode(errors="replace").strip().rpartition("\n")[2]
    raise RuntimeError(f"the server did not start: {last}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
