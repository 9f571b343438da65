"""Lets an event loop breathe while thousands of calls begin at once.

All tasks of one `asyncio.gather` take their first step in one turn of the loop. Ten thousand calls that begin there,
each against a hundred threads for the GIL, keep everybody else's tasks waiting for seconds.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque

__all__ = ["later_turn"]

_CALLS_PER_TURN = 16  # of one loop: some 2 ms of it; a web server's loop begins one or two


class _Turns:
    """How many calls have begun in this turn of one loop, and which wait for the next.

    Threads: that of the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self.begun = 0
        self.waiting: deque[asyncio.Future[None]] = deque()

    def next_turn(self) -> None:
        self.begun = 0
        while self.waiting and self.begun < _CALLS_PER_TURN:
            turn = self.waiting.popleft()
            if not turn.done():  # cancelled meanwhile
                turn.set_result(None)
                self.begun += 1
        loop = self._loop()
        if self.begun and loop is not None:
            loop.call_soon(self.next_turn)


_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = weakref.WeakKeyDictionary()


def later_turn() -> asyncio.Future[None] | None:
    """None for a call that may begin now; or what it awaits first, because many have begun in this turn of the loop.

    Threads: that of a running loop; without one there is nothing to wait for.
    """
    loop = asyncio._get_running_loop()
    if loop is None:
        return None
    turns = _turns.get(loop)
    if turns is None:
        turns = _turns[loop] = _Turns(loop)
    if turns.begun == 0:
        loop.call_soon(turns.next_turn)
    if turns.begun < _CALLS_PER_TURN:
        turns.begun += 1
        return None
    turn = loop.create_future()
    turns.waiting.append(turn)
    return turn
