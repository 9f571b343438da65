"""What the calls on one event loop wait for: sockets, by one epoll, and moments, by one timer of the loop.

A reader and a timer of the loop's own for each wait would cost as much as all else that a call needs of its engine.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
import os
import select
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["Moment", "Waits", "settle", "waits_of"]

# Linux has it; elsewhere each wait has a reader of the loop's own.
_epoll: Any = getattr(select, "epoll", None)
_READ, _WRITE, _ONCE = (
    (select.EPOLLIN, select.EPOLLOUT, select.EPOLLONESHOT) if _epoll is not None else (1, 4, 0)
)

_MOST_CANCELLED = 100  # cancelled moments stay in the heap until they are more than this, and half of it


class Moment:
    """Something to do at a moment on `time.monotonic()`.

    Threads: the loop's.
    """

    __slots__ = ("_waits", "do")

    def __init__(self, waits: Waits, do: Callable[[], object]) -> None:
        self._waits = waits
        self.do: Callable[[], object] | None = do

    def cancel(self) -> None:
        """It is not done."""
        if self.do is not None:
            self.do = None
            self._waits.note_cancelled()


class Waits:
    """The waits of one event loop.

    Threads: the loop's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._numbers = itertools.count()
        self._moments: list[tuple[float, int, Moment]] = []  # a heap
        self._cancelled = 0
        self._wakes_at = math.inf  # the first of them
        self._timers: set[float] = set()  # the moments at which the loop will call `_do_due`
        # What the loop calls for all of them: in the context of the call that came first, that would stay in memory.
        self._context = contextvars.Context()
        self._waiting: dict[int, list[tuple[int, asyncio.Future[bool]]]] = {}
        self._epoll: Any = None
        if _epoll is not None:
            self._epoll = _epoll()
            self._context.run(loop.add_reader, self._epoll.fileno(), self._settle_ready)

    def at(self, moment: float, do: Callable[[], object]) -> Moment:
        """Has something done at a moment, unless that is cancelled; in a context without variables."""
        it = Moment(self, do)
        heapq.heappush(self._moments, (moment, next(self._numbers), it))
        if moment < self._wakes_at:
            self._wake_at(moment)
        return it

    def note_cancelled(self) -> None:
        """One of the moments is kept for nothing."""
        self._cancelled += 1
        if self._cancelled > _MOST_CANCELLED and self._cancelled * 2 > len(self._moments):
            self._moments = [each for each in self._moments if each[2].do is not None]
            heapq.heapify(self._moments)
            self._cancelled = 0

    def _wake_at(self, moment: float) -> None:
        # No handle is kept, for it would keep the loop: a timer for a later moment stays, and serves when that comes.
        self._wakes_at, loop = moment, self._loop()
        if loop is not None and moment not in self._timers:
            self._timers.add(moment)
            delay_s = max(0.0, moment - time.monotonic())
            loop.call_later(delay_s, self._do_due, moment, context=self._context)

    def _do_due(self, moment: float) -> None:
        self._timers.discard(moment)
        if moment != self._wakes_at:
            return
        loop, now = self._loop(), time.monotonic()
        while self._moments and (self._moments[0][0] <= now or self._moments[0][2].do is None):
            it = heapq.heappop(self._moments)[2]
            do, it.do = it.do, None
            if do is None:
                self._cancelled -= 1
            elif loop is not None:
                loop.call_soon(do)  # where what it raises breaks nobody else's
        self._wakes_at = math.inf
        if self._moments:
            self._wake_at(self._moments[0][0])

    def add(self, number: int, future: asyncio.Future[bool], *, writes: bool) -> None:
        """Settles the future when the descriptor can be read or written; it may be settled before, for nothing."""
        loop, wanted = future.get_loop(), _WRITE if writes else _READ
        if self._epoll is None:
            (loop.add_writer if writes else loop.add_reader)(number, settle, future, True)
            return
        others = self._waiting.get(number)
        if others is None:
            self._waiting[number] = [(wanted, future)]
        else:  # calls that share a connection
            others.append((wanted, future))
            for each, _ in others:
                wanted |= each
        try:
            try:
                self._epoll.modify(number, wanted | _ONCE)
            except FileNotFoundError:  # the first wait for this socket
                self._epoll.register(number, wanted | _ONCE)
        except BaseException:
            self.remove(number, future, writes=writes)
            raise

    def remove(self, number: int, future: asyncio.Future[bool], *, writes: bool) -> None:
        """Nobody waits for the future any more; to be called whether it was settled or not."""
        if self._epoll is None:
            loop = future.get_loop()
            (loop.remove_writer if writes else loop.remove_reader)(number)
            return
        waiting = self._waiting.get(number)
        if waiting is None:  # what is ready was taken out
            return
        waiting[:] = [each for each in waiting if each[1] is not future]
        if not waiting:
            del self._waiting[number]
            with suppress(OSError, ValueError):  # closed
                self._epoll.unregister(number)

    def _settle_ready(self) -> None:
        for number, events in self._epoll.poll(0):
            for wanted, future in self._waiting.pop(number, ()):
                # An error, or the end, is for both.
                if not (events & ~(_READ | _WRITE) or events & wanted):
                    with suppress(OSError, ValueError):  # closed meanwhile, which who waits for it finds out
                        self.add(number, future, writes=wanted == _WRITE)
                        continue
                settle(future, True)


def settle(future: asyncio.Future[bool], value: bool) -> None:
    """Ends the wait for the future, if nothing has."""
    if not future.done():
        future.set_result(value)


# The loop has its waits, by their reader; here it must not, or neither would ever leave memory.
_waits: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[Waits]] = weakref.WeakKeyDictionary()


def waits_of(loop: asyncio.AbstractEventLoop) -> Waits:
    """The waits of the loop.

    Threads: the loop's.
    """
    reference = _waits.get(loop)
    waits = None if reference is None else reference()
    if waits is None:
        waits = Waits(loop)
        _waits[loop] = weakref.ref(waits)
    return waits


def _after_fork_in_child() -> None:
    # The parent's epoll is shared with it: what the child did there would be done to the parent's calls.
    _waits.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
