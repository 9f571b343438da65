"""Looks after event loops: names code of a call that holds one up, and frees the slots of one that was closed."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from typing import Any

__all__ = ["begin", "end", "register", "unregister"]

_logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05
_BLOCKED_LOOKS = 2  # at the same step: at least a tenth of a second, but for the first look's share
_TELL_AGAIN_LOOKS = 200
_TELL_EVERY_S = 60.0  # of the same place
_IDLE_LOOKS = 100  # then the thread sleeps until it is needed


class _Pulse:
    """The step of now of one loop's thread; each attribute is written by that thread alone."""

    def __init__(self) -> None:
        self.thread_id = threading.get_ident()
        self.job: Any = None
        self.steps = 0


class _Watchdog(threading.Thread):
    """Looks at each loop's thread twenty times a second while calls run on it."""

    def __init__(self) -> None:
        super().__init__(name="llm-loop-watchdog", daemon=True)
        self.pulses: list[_Pulse] = []
        self.is_awake = True
        self._bell = threading.Event()
        self._told_at: dict[str, float] = {}

    def ring(self) -> None:
        """A call runs again."""
        self.is_awake = True
        self._bell.set()

    def run(self) -> None:
        seen: dict[_Pulse, tuple[int, int]] = {}  # the step, and how often it was looked at
        idle_looks = 0
        while True:
            time.sleep(_LOOK_EVERY_S)
            is_idle = not _under_way
            _free_lost()
            for pulse in self.pulses:
                job, steps = pulse.job, pulse.steps
                if job is None:
                    is_idle = is_idle and seen.get(pulse, (0, 0))[0] == steps
                    seen[pulse] = (steps, 0)
                    continue
                is_idle = False
                step, looks = seen.get(pulse, (steps, 0))
                looks = looks + 1 if step == steps else 1
                seen[pulse] = (steps, looks)
                if looks > _BLOCKED_LOOKS and (looks - _BLOCKED_LOOKS - 1) % _TELL_AGAIN_LOOKS == 0:
                    self._tell(pulse, looks * _LOOK_EVERY_S)
            idle_looks = idle_looks + 1 if is_idle else 0
            if idle_looks > _IDLE_LOOKS:
                idle_looks = 0
                self._bell.clear()
                self.is_awake = False
                self._bell.wait()

    def _tell(self, pulse: _Pulse, blocked_s: float) -> None:
        frame = sys._current_frames().get(pulse.thread_id)
        if frame is None or pulse.job is None:
            return
        stack = traceback.extract_stack(frame)
        place = f"{stack[-1].filename}:{stack[-1].lineno}"
        now = time.monotonic()
        if now - self._told_at.get(place, -_TELL_EVERY_S) < min(_TELL_EVERY_S, blocked_s):
            return
        self._told_at[place] = now
        _logger.warning(
            "a call has held the event loop up for %.1f s, and every other call with it, in %s (%s): make such a call "
            "with call_options(engine=\"threads\"), or set LLM_ENGINE=threads\n%s", blocked_s, place, stack[-1].name,
            "".join(traceback.format_list(stack[-12:])).rstrip(),
        )  # fmt: skip


_local = threading.local()
_watchdog: _Watchdog | None = None


def begin(job: Any) -> Any:
    """The running thread, a loop's, goes on with a call; returns what `end` wants.

    Threads: the loop's.
    """
    pulse = getattr(_local, "pulse", None)
    if pulse is None:
        pulse = _local.pulse = _Pulse()
        _started().pulses.append(pulse)
    elif _watchdog is not None and not _watchdog.is_awake:
        _watchdog.ring()
    before, pulse.job = pulse.job, job
    return before


def end(before: Any) -> None:
    """The call yields, or has ended.

    Threads: the loop's.
    """
    pulse = _local.pulse
    pulse.job = before
    pulse.steps += 1


# The calls that have a slot, and what each waits by, by their loops; each dict is changed by its loop's thread.
_under_way: dict[asyncio.AbstractEventLoop, dict[Any, Any]] = {}


def register(loop: asyncio.AbstractEventLoop, job: Any, waiter: Any) -> None:
    """A call has its slot, and the loop runs it.

    Threads: the loop's.
    """
    calls = _under_way.get(loop)
    if calls is None:
        calls = _under_way[loop] = {}
    calls[job] = waiter


def unregister(loop: asyncio.AbstractEventLoop, job: Any) -> None:
    """The call has ended.

    Threads: the loop's.
    """
    calls = _under_way.get(loop)
    if calls is not None:
        calls.pop(job, None)
        if not calls:
            _under_way.pop(loop, None)


def _free_lost() -> None:
    """Takes their slots from calls whose loop was closed under them: nothing else would ever end these."""
    for loop in list(_under_way):
        if loop.is_closed():
            for job, waiter in _under_way.pop(loop, {}).copy().items():
                job.pool.give_up(job, "cancelled")
                job.pool.finish(job)
                waiter.forget_task()


def _started() -> _Watchdog:
    global _watchdog
    watchdog = _watchdog
    if watchdog is None:
        watchdog = _watchdog = _Watchdog()
        watchdog.start()
    return watchdog


def _after_fork_in_child() -> None:
    global _watchdog, _local
    _watchdog, _local = None, threading.local()
    _under_way.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
