"""The places at the API that one process holds, waits for and has to tell the others of, without any thread."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..events import AccountChanged

if TYPE_CHECKING:
    from ..account_server import Standing

__all__ = ["BEAT_S", "Place", "Places"]

BEAT_S = 1.0
_EXPIRY_S = 3.0  # of a process that beats no more: it may miss two beats
_UNHEARD_S = 0.05  # in which a live process hears of its grants; until it has, others go first
_RECOVERY_S = 30.0  # in which a twentieth of LLM_ACCOUNT_LIMIT comes back after the API has refused calls
_RULES = {
    "expiry_ms": int(1000 * _EXPIRY_S),
    "unheard_ms": int(1000 * _UNHEARD_S),
    "recovery_ms": int(1000 * _RECOVERY_S),
    "passed": 500,  # a few milliseconds of the server
}
# Under older names the server does not know this process any more: it speaks, or tries to, once a beat.
_NAMES = 5
# As one of how many a process counts itself until the server has told it: with too few, each takes everything.
_PROCESSES_UNTIL_TOLD = 10


class Place:
    """One attempt's place at the API: it waits for it, holds it, and leaves it.

    Attributes:
        is_held: whether the attempt may run.
        turn: set once its wait is over, one way or another.

    Threads: `is_held` is guarded by the lock of whoever owns the Places.
    """

    def __init__(self) -> None:
        self.token = ""
        self.is_held = False
        self.turn = threading.Event()


class Places:
    """What this process holds and waits for, and what the server that all share is to be told of it.

    The server gives the places. While it is away this process keeps to its share, the limit divided by the processes
    that were last known; when it is back, or has taken this process for dead, the process joins under a new name and
    tells everything anew.

    Args:
        limit: LLM_ACCOUNT_LIMIT.
        clock: replaces `time.monotonic`.

    Attributes:
        process: the name under which the server knows this process; None while it does not.
        is_away: the server does not answer.
        limit: of the account, as far as this process knows.

    Threads: none of its own; the owner holds one lock around every call. One speech at a time.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.process: str | None = None
        self.is_away = False
        self.limit = self._configured = limit
        self._processes = _PROCESSES_UNTIL_TOLD
        self._clock = clock
        self._tokens = itertools.count(1)
        self._waiting: dict[str, Place] = {}  # by token, the oldest first
        self._held: set[Place] = set()
        self._wanted: list[str] = []  # these three: since the last speech
        self._taken: list[str] = []
        self._gone: list[str] = []
        self._refused_at: int | None = None
        self._names: list[str] = []  # under which the server may know this process
        self._speaks_at = self._joins_at = clock()
        self._reported = AccountChanged()

    @property
    def share(self) -> int:
        """How many places this process may have without asking."""
        return max(1, self.limit // self._processes)

    def ask(self, place: Place) -> None:
        """The place waits from now on, behind all others that wait."""
        place.token = str(next(self._tokens))
        self._waiting[place.token] = place
        self._wanted.append(place.token)
        self._take_share()

    def leave(self, place: Place) -> None:
        """The place, held or waited for, is free. Idempotent; one of the parent of this process is not known."""
        if self._waiting.get(place.token) is place:
            del self._waiting[place.token]
        elif place not in self._held:
            return
        self._held.discard(place)
        place.is_held = False
        self._gone.append(place.token)
        self._take_share()

    def refused(self, named: int | None) -> None:
        """The API has refused an attempt by 429, and has named its limit, or none."""
        if named is None:
            self._refused_at = self._refused_at or 0
            return
        self._refused_at = min(named, self._refused_at or named)
        if self.is_away:
            self.limit = min(self.limit, named)

    def seconds_to_speech(self) -> float:
        """How long this process has nothing to tell the server; 0 or less if it is time to speak."""
        has_news = self._wanted or self._taken or self._gone or self._refused_at is not None
        return 0.0 if has_news and self.process is not None else self._speaks_at - self._clock()

    def speech(self) -> tuple[str, dict[str, Any]]:
        """What the server is to be told now, and under which name; `heard` or `lost` must follow."""
        now, joins = self._clock(), self.process is None
        process = self.process or uuid.uuid4().hex
        if joins:
            self._wanted, self._gone = list(self._waiting), []
            self._taken = [place.token for place in self._held]
            self._joins_at = now + BEAT_S
        news = {
            "joins": joins, "replaces": self._names, "wanted": self._wanted, "taken": self._taken,
            "gone": self._gone, "refused_at": self._refused_at, "limit": self._configured,
            "processes": self._processes, **_RULES,
        }  # fmt: skip
        if joins:
            self._names = [*self._names, process][-_NAMES:]
        self._wanted, self._taken, self._gone = [], [], []
        self._speaks_at = now + BEAT_S
        return process, news

    def heard(self, process: str, news: dict[str, Any], standing: Standing | None) -> bool:
        """The server has answered a speech; returns whether it had been away.

        Args:
            standing: None if it does not know the process any more.
        """
        if standing is None:
            self._part(process)
        if standing is None or not (news["joins"] or process == self.process):
            return False
        was_away, self.is_away = self.is_away, False
        self.process, self._names = process, [process]
        if self._refused_at == news["refused_at"]:
            self._refused_at = None
        self.limit, self._processes = standing.limit, standing.processes
        self.granted(process, standing.granted)
        return was_away

    def lost(self, process: str) -> bool:
        """The server has not answered; returns whether it counts as away from now on, which it does the second time."""
        if self.process is not None:
            self._part(process)
            return False
        if self.is_away or process != self._names[-1]:
            return False
        self.is_away = True
        self._take_share()
        return True

    def granted(self, process: str, tokens: Iterable[str]) -> None:
        """These waiting places are held from now on; those that have left meanwhile are not, as the server is told."""
        if process != self.process:
            return  # under its present name it has asked for them again
        for token in tokens:
            place = self._waiting.pop(token, None)
            if place is not None:
                self._hold(place)

    def changes(self) -> AccountChanged | None:
        """What metrics are to be told since the last time; None for nothing."""
        now = AccountChanged(limit=self.limit / self._processes, away=int(self.is_away))
        before, self._reported = self._reported, now
        if now == before:
            return None
        return AccountChanged(limit=now.limit - before.limit, away=now.away - before.away)

    def _part(self, process: str) -> None:
        if process == self.process:
            self.process = None
            # At once, but not for the second time within a beat, whatever breaks each time.
            self._speaks_at = max(self._clock(), self._joins_at)

    def _take_share(self) -> None:
        while self.is_away and self._waiting and len(self._held) < self.share:
            token = next(iter(self._waiting))
            self._taken.append(token)
            self._hold(self._waiting.pop(token))

    def _hold(self, place: Place) -> None:
        place.is_held = True
        self._held.add(place)
        place.turn.set()
