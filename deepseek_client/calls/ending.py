"""Ends the calls of a process that is about to leave, wherever they run or wait."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterator
from types import BuiltinFunctionType

from ..engines.admission import CLOSING
from ..engines.threads import WorkerPool, all_pools
from ..errors import PoolClosed
from .call import Attempt, calls_in_flight

__all__ = ["back_off", "check", "end_calls", "has_calls", "is_ending", "unlimited"]

is_ending = False
"""Whether `end_calls` was called in this process."""

_sleepers: set[asyncio.Future[None]] = set()  # between two attempts; changed in one step each: needs no lock
_unlimited: set[Attempt] = set()  # in no pool's slot; likewise


def end_calls() -> None:
    """Ends every call of this process and refuses further ones; all raise PoolClosed. Idempotent.

    Threads: any; it takes locks, so not a signal handler. Waits for nothing.
    """
    global is_ending
    is_ending = True
    for pool in all_pools():
        pool.close()
    for sleeper in list(_sleepers):
        _end_sleeper(sleeper)
    for attempt in list(_unlimited):
        attempt.abort("closing")


def has_calls() -> bool:
    """Whether a call of this process is under way, or a thread still runs for one that nobody waits for any more.

    Threads: any.
    """
    stats = [pool.stats() for pool in all_pools()]
    return bool(calls_in_flight()) or any(each["busy"] or each["queued"] for each in stats)


def check() -> None:
    """Raises PoolClosed once the process is about to leave. Nothing was sent."""
    if is_ending:
        raise _closing()


async def back_off(wait_s: float, pool: WorkerPool) -> None:
    """Waits between two attempts, without a thread.

    Raises:
        PoolClosed: the pool of the next attempt was closed meanwhile, or `end_calls` was called, or before.
    """
    loop = asyncio.get_running_loop()
    sleeper = loop.create_future()
    end = functools.partial(_end_sleeper, sleeper)
    pool.at_close.add(end)
    _sleepers.add(sleeper)
    timer: asyncio.TimerHandle | threading.Timer
    if isinstance(time.monotonic, BuiltinFunctionType):
        timer = loop.call_later(wait_s, _wake, sleeper)
    else:  # a test has stopped the clock (freezegun), the loop's own, too: it would wait for ever
        timer = threading.Timer(wait_s, _wake_from_thread, (loop, sleeper))
        timer.daemon = True
        timer.start()
    try:
        check()  # Only now: a later end_calls() finds the sleeper, and so does a later close() of the pool.
        if pool.is_closed():
            raise _closing()
        await sleeper
    finally:
        timer.cancel()
        pool.at_close.discard(end)
        _sleepers.discard(sleeper)


@contextlib.contextmanager
def unlimited(attempt: Attempt) -> Iterator[Attempt]:
    """In the block the attempt runs in this thread, in no slot; `end_calls` ends it.

    Raises:
        PoolClosed: `end_calls` was called before.
    """
    _unlimited.add(attempt)
    try:
        check()  # Only now: a later end_calls() finds the attempt.
        yield attempt
    finally:
        _unlimited.discard(attempt)


def _wake(sleeper: asyncio.Future[None], error: Exception | None = None) -> None:
    if not sleeper.done():
        if error is None:
            sleeper.set_result(None)
        else:
            sleeper.set_exception(error)


def _end_sleeper(sleeper: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits
        sleeper.get_loop().call_soon_threadsafe(_wake, sleeper, _closing())


def _wake_from_thread(loop: asyncio.AbstractEventLoop, sleeper: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits
        loop.call_soon_threadsafe(_wake, sleeper)


def _closing() -> PoolClosed:
    return PoolClosed(CLOSING)


def _after_fork_in_child() -> None:
    global is_ending
    is_ending = False
    _sleepers.clear()
    _unlimited.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
