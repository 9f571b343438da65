"""Blocking functions under a test's control, and waits for what they cause."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from deepseek_client import WorkerPool

from .patience import GIVE_UP_S


class Blocked:
    """A blocking function that its owner, or an abort, lets go; it says when a thread is inside."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.reason: str | None = None

    def __call__(self) -> str:
        self.entered.set()
        assert self.gate.wait(GIVE_UP_S)
        return "let go"

    def abort(self, reason: str) -> None:
        self.reason = reason
        self.gate.set()


class Deaf(Blocked):
    """One that no abort reaches."""

    abort = None  # type: ignore[assignment]


class Clock:
    """A moment that stands still; stands in for `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def entered(*blocked: Blocked) -> None:
    for one in blocked:
        assert await asyncio.to_thread(one.entered.wait, GIVE_UP_S)


async def until(fact: Callable[[], bool]) -> None:
    """Lets other tasks and threads go on until the fact is true."""
    deadline = time.monotonic() + GIVE_UP_S
    while not fact():
        assert time.monotonic() < deadline, "never became true"
        await asyncio.sleep(0)


@asynccontextmanager
async def other_task() -> AsyncIterator[SimpleNamespace]:
    """Another task of the event loop, which runs in each of its turns; `count` says how often it has."""
    turns = SimpleNamespace(count=0)

    async def run() -> None:
        while True:
            turns.count += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(run())
    try:
        yield turns
    finally:
        running.cancel()


def counts(pool: WorkerPool) -> tuple[int, int]:
    stats = pool.stats()
    return stats["busy"], stats["queued"]


def leaving_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the test end the calls of this process, and the tests after it make calls again."""
    monkeypatch.setattr("deepseek_client.engines.shared._defaults", {})
    monkeypatch.setattr("deepseek_client.engines.threads._pools", weakref.WeakSet())
    monkeypatch.setattr("deepseek_client.calls.ending.is_ending", False)


@contextmanager
def held_elsewhere(lock: AbstractContextManager[Any]) -> Iterator[None]:
    """Another thread is inside of the lock for as long as the block lasts."""
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            holding.set()
            assert done.wait(GIVE_UP_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holding.wait(GIVE_UP_S)
    try:
        yield
    finally:
        done.set()
        holder.join(GIVE_UP_S)


def in_child(work: Callable[[], None]) -> None:
    """Runs `work` in a forked child; fails if it raises or hangs there."""
    pid = os.fork()
    if pid == 0:
        threading.Timer(GIVE_UP_S, os._exit, (9,)).start()
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
