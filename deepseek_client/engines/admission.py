"""Who may run, who waits and who is refused: the slots and the queue in front of them, without any thread.

Two numbers bound an engine: `workers` calls run, `queue_limit` calls wait, and one more is refused at once. A slot
belongs to what runs, not to who waits for its result: a waiter that gives up does not free a thread that still runs.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

from ..errors import DeadlineExceeded, Overloaded

__all__ = ["CLOSING", "NOT_STARTED", "Admission", "Ticket"]

# How fast the queue drains is told by the last calls that ended, if they are as many and as recent as this.
_MEASURED_CALLS = 10
_MEASURED_WITHIN_S = 60.0

_TELL_EVERY_S = 60.0
_TELL_FROM_S = 0.05  # nobody notices a shorter wait

CLOSING = "The service is shutting down."
NOT_STARTED = "The call's time was over before it was started."


class Ticket:
    """One call's place: in the queue, then in a slot.

    Attributes:
        deadline: a moment on the clock, None for no limit.
        slots: how many it takes: 0 for a call inside of another one, whose slot it uses.
        state: "new", "queued", "granted" (has its slot, does not run yet), "running" or "ended".
        given_up: it runs, and nobody waits for it any more.

    Threads: guarded by the lock of whoever owns the Admission.
    """

    slots = 1
    state = "new"
    admitted = 0.0
    began = 0.0
    given_up = False

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline


class Admission:
    """Slots and a first-in, first-out queue.

    Args:
        workers: how many calls run at once, at least 1.
        queue_limit: how many calls may wait, 0 for none.
        clock: replaces `time.monotonic`.

    Attributes:
        queued, running: calls that wait, slots that are taken.
        rejected: calls that were refused.
        waits: calls that had to wait, since `waits_to_tell` gave something.

    Threads: none of its own; the owner holds one lock around every call.
    """

    def __init__(
        self, workers: int, queue_limit: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if workers < 1 or queue_limit < 0:
            raise ValueError(f"workers={workers}, queue_limit={queue_limit}: need at least 1 and at least 0")
        self.workers = workers
        self.queue_limit = queue_limit
        self.running = 0
        self.rejected = 0
        self._clock = clock
        self._queue: OrderedDict[Ticket, None] = OrderedDict()
        self._leaving = 0  # slots of calls that were given up: they are free in a moment
        self._ran_s: deque[float] = deque(maxlen=_MEASURED_CALLS)
        self._last_ended = 0.0
        self.waits = 0
        self._longest_wait_s = 0.0
        self._waits_since = 0.0
        self._told_at = -_TELL_EVERY_S

    @property
    def queued(self) -> int:
        """Calls that wait for a slot."""
        return len(self._queue)

    def stats(self) -> dict[str, int]:
        """Counts of this moment: workers, busy, queued, queue_limit, rejected (since the start)."""
        return {
            "workers": self.workers,
            "busy": self.running,
            "queued": self.queued,
            "queue_limit": self.queue_limit,
            "rejected": self.rejected,
        }

    def has_room(self) -> bool:
        """Whether a slot or a place in the queue is free."""
        return self.running < self.workers or self.queued < self.queue_limit

    def admit(self, ticket: Ticket) -> bool:
        """Gives the ticket a slot and returns True, or a place in the queue and returns False.

        Raises:
            Overloaded: there is neither, or by the pace of the last calls it could not end before its deadline. Its
                `retry_after_s` is the time in which what waits now should be done, None while that is not known.
        """
        ticket.admitted = self._clock()
        if self.running < self.workers:
            ticket.state = "granted"
            self.running += ticket.slots
            return True
        self._check_queue(ticket)
        ticket.state = "queued"
        self._queue[ticket] = None
        return False

    def begin(self, ticket: Ticket) -> None:
        """The ticket's call runs from now on.

        Raises:
            DeadlineExceeded: its time was over before.
        """
        ticket.began = self._clock()
        if ticket.deadline is not None and ticket.began >= ticket.deadline:
            raise DeadlineExceeded(NOT_STARTED)
        ticket.state = "running"

    def give_up(self, ticket: Ticket) -> bool:
        """Nobody waits for the ticket any more; True if it runs, and keeps its slot until it ends."""
        if ticket.state != "running":
            return False
        if not ticket.given_up:
            ticket.given_up = True
            self._leaving += ticket.slots
        return True

    def end(self, ticket: Ticket) -> Ticket | None:
        """Frees what the ticket holds, whatever that is; returns the one that has the slot now, if one waited."""
        state, ticket.state = ticket.state, "ended"
        if state == "queued":
            del self._queue[ticket]
        if state not in ("granted", "running"):
            return None
        self.running -= ticket.slots
        if state == "running" and ticket.slots:
            now = self._clock()
            ran_s = now - ticket.began
            if ticket.given_up:
                self._leaving -= ticket.slots
                # It was cut short: it would have run for longer, at least as long as the others.
                ran_s = max(ran_s, self._pace_s() or 0)
            self._last_ended = now
            self._ran_s.append(ran_s)
        if not self._queue or self.running >= self.workers:
            return None
        following, _ = self._queue.popitem(last=False)
        self._note_wait(self._clock() - following.admitted)
        following.state = "granted"
        self.running += following.slots
        return following

    def waits_to_tell(self) -> tuple[int, float] | None:
        """How many calls waited since the last time, and the longest wait in seconds; None if it is not time to say so.

        It is time when the queue is empty again, or after a minute, and not more than once a minute.
        """
        if self._longest_wait_s < _TELL_FROM_S:
            return None
        now = self._clock()
        if now - self._told_at < _TELL_EVERY_S or (self._queue and now - self._waits_since < _TELL_EVERY_S):
            return None
        told = self.waits, self._longest_wait_s
        self.waits, self._longest_wait_s, self._told_at = 0, 0.0, now
        return told

    def _note_wait(self, waited_s: float) -> None:
        if self.waits == 0:
            self._waits_since = self._clock()
        self.waits += 1
        self._longest_wait_s = max(self._longest_wait_s, waited_s)

    def _check_queue(self, ticket: Ticket) -> None:
        """Raises Overloaded if the ticket finds no place in the queue, or none that helps."""
        waiting = self.queued
        pace_s, wait_s, reason = self._pace_s(), None, None
        if pace_s is not None:
            wait_s = max(0, waiting + 1 - self._leaving) * pace_s / self.workers
        if waiting >= self.queue_limit:
            reason = f"{self.queue_limit} calls wait already"
        elif pace_s and wait_s and ticket.deadline and self._clock() + wait_s + pace_s > ticket.deadline:
            reason = f"by their pace this call would not end in time after {waiting} that wait"
        if reason is not None:
            self.rejected += 1
            raise Overloaded(f"All {self.workers} workers are busy and {reason}.", retry_after_s=wait_s)

    def _pace_s(self) -> float | None:
        """How long a call runs, by the last ones that ended; None if they are too few or too long ago."""
        is_recent = self._clock() - self._last_ended < _MEASURED_WITHIN_S
        if len(self._ran_s) < _MEASURED_CALLS or not is_recent:
            return None
        return sum(self._ran_s) / _MEASURED_CALLS
