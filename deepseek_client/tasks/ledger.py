"""Our record of each task in the queue's server: the one truth of its state and its result.

A prompt and an answer lie there compressed, so that what an operator watches the server with (`MONITOR`, `SLOWLOG`)
does not show them in passing. Whoever has the server's password can read them.
"""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import redis

from ..errors import PoolClosed, QueueUnavailable
from ..queue_connection import TIMEOUT_S, connect
from . import ids, scripts
from .message import message_for
from .overview import Overview, overview_of
from .scripts import PREFIX
from .withdrawals import Withdrawals

__all__ = ["PREFIX", "TIMEOUT_S", "Begun", "Ledger", "Lost", "Record", "connect", "packed", "unpacked"]

_logger = logging.getLogger(__name__)

# Less than the timeout by what the answer may need: what the server does later than that, it does not do.
_NOT_AFTER_S = 0.7
_STAYS_AWAY_S = 1.5
_HELLO_LASTS_S = 60.0
_KEY_LASTS_S = 24 * 3600
_STARTS = 5
_LOST = "The task was given up: the workers that had it were lost."


def packed(value: Any) -> bytes:
    """A JSON value as the server keeps it."""
    # ASCII: of other bytes zlib would keep some as they are.
    return zlib.compress(json.dumps(value).encode("ascii"), 6)


def unpacked(raw: bytes) -> Any:
    """What `packed` was given."""
    return json.loads(zlib.decompress(raw))


class Record(NamedTuple):
    """What the server knows of a task.

    Attributes:
        state: "pending", "started", "completed", "failed" or "cancelled"; "" if it has no record (any more).
        outcome: {"result"} of a completed one, {"error", "code"} of a failed one, otherwise {}.
        age_s: seconds since its submission.
    """

    state: str
    outcome: dict[str, Any]
    age_s: float


class Begun(NamedTuple):
    """A task that this process has now: what to do, and the number that the end of this run must show."""

    fence: int
    method: str
    args: list[Any]
    request_id: str


class Lost(NamedTuple):
    """A task that has neither a message nor a worker; `sends` counts the message that it needs."""

    task_id: str
    sends: int


class _Outage:
    """A small breaker: while the server is away one asker in a while tries, all others are answered at once.

    Threads: any; a race costs one more try.
    """

    def __init__(self) -> None:
        self._tries_again_at = 0.0  # 0: it was there when it was last asked

    def check(self) -> None:
        """Raises QueueUnavailable unless the server may be asked."""
        if self._tries_again_at:
            wait_s = self._tries_again_at - time.monotonic()
            if wait_s > 0:
                raise QueueUnavailable("The queue is not available.", retry_after_s=wait_s)
            self._tries_again_at = time.monotonic() + _STAYS_AWAY_S

    def is_over(self) -> None:
        self._tries_again_at = 0.0

    def has_begun(self, error: Exception) -> None:
        if not self._tries_again_at:
            _logger.warning("the queue's server is not available: %s: %s", type(error).__name__, error)
        self._tries_again_at = time.monotonic() + _STAYS_AWAY_S


class Ledger:
    """The tasks of one server.

    Args:
        url: of CELERY_BROKER_URL.
        limit: tasks that may wait.
        ttl_s: seconds that an ended task is kept.

    Every method raises QueueUnavailable when the server is away, does not answer within a second, or is full.

    Threads: any; each call blocks for a second at most. After a fork the child has connections of its own.
    """

    def __init__(
        self, url: str, *, limit: int, ttl_s: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.url = url
        self._limit = limit
        self._ttl_s = ttl_s
        self._clock = clock
        self._client = connect(url)
        self._outage = _Outage()
        self._withdrawals = Withdrawals(url, ttl_s)
        # The server's clock less ours in seconds, the key of ids, and when we learned that. Replaced, never changed.
        self._hello: tuple[float, bytes, float] | None = None
        names = (
            *("HELLO", "SUBMIT", "START", "FINISH", "LOOK", "CANCEL", "SWEEP", "RESEND"),
            *("ATTEND", "OVERVIEW"),
        )
        self._scripts = {name: self._client.register_script(getattr(scripts, name)) for name in names}

    def submit(
        self, method: str, args: list[Any], request_id: str, *, key: str = "", body_hash: str = ""
    ) -> tuple[str, str]:
        """Writes a task's record and its message; both, or neither.

        Args:
            key: names the submission, so that a second one is the same task; "" for none.
            body_hash: tells what was submitted under the key.

        Returns:
            "accepted", "repeated", "other body" or "full"; the id of the task, or of the one that the key has made.
        """
        for is_last in (False, True):
            offset_s, id_key = self._greeted()
            task_id = ids.new_id(id_key)
            not_after = (self._clock() + offset_s + _NOT_AFTER_S) * 1e6
            self._withdrawals.be_ready()
            try:
                outcome, *known = self._run(
                    "SUBMIT", task_id, f"{not_after:.0f}", self._limit, method, packed(args), request_id,
                    message_for(task_id), key, body_hash, _KEY_LASTS_S,
                )  # fmt: skip
            except QueueUnavailable as exc:
                if exc.__cause__ is not None:  # it was asked, and may have done it
                    self._withdrawals.add(task_id, key)
                raise
            if outcome != b"late":
                break
            self._hello = None  # its clock was set, or the request lay there
            if is_last:
                raise QueueUnavailable("The queue did not answer in time.", retry_after_s=1)
        return outcome.decode(), known[0].decode() if known else task_id

    def is_genuine(self, task_id: str) -> bool:
        """Whether such a task was ever submitted."""
        return ids.is_genuine(self._greeted()[1], task_id)

    def look(self, task_id: str, channel: str = "") -> Record:
        """The task's state.

        Args:
            channel: of a process that is told when the task ends, in the same step; "" for none.
        """
        return _record(self._run("LOOK", task_id, channel))

    def cancel(self, task_id: str) -> Record:
        """Ends a task that has not ended, and tells the process that runs it."""
        return _record(self._run("CANCEL", task_id, self._ttl_s))

    def start(self, task_id: str, run: str, lease_s: float, channel: str) -> Begun | str:
        """Takes a task for this process; or says why it may not: "running" elsewhere, ended, "gone".

        Args:
            run: names this run, so that asking again does no harm.
            lease_s: seconds after which the task is given to another process.
            channel: where this process hears that the task was cancelled.
        """
        found = self._run(
            "START", task_id, run, int(lease_s * 1000), channel, _STARTS, _LOST_OUTCOME, self._ttl_s
        )
        if found[0] != b"go":
            return str(found[0].decode())
        return Begun(int(found[1]), found[2].decode(), unpacked(found[3]), found[4].decode())

    def finish(self, task_id: str, fence: int, state: str, outcome: dict[str, Any]) -> bool:
        """Writes how a run has ended; False if the task belongs to another run now, or was cancelled."""
        return bool(self._run("FINISH", task_id, fence, state, packed(outcome), self._ttl_s) == b"done")

    def sweep(self, grace_s: float) -> list[Lost]:
        """The tasks that need a new message, oldest first; each is given once.

        Args:
            grace_s: how long a task must have been seen without a message.
        """
        found = self._run("SWEEP", int(grace_s * 1000), _STARTS, _LOST_OUTCOME, self._ttl_s)
        return [Lost(task_id.decode(), int(sends)) for task_id, sends in found]

    def resend(self, lost: Lost) -> bool:
        """Puts a task into the queue again; False if it has ended or was started meanwhile."""
        return bool(self._run("RESEND", lost.task_id, lost.sends, message_for(*lost)))

    def may_sweep(self, every_s: float) -> bool:
        """Whether this process is the one that sweeps in this period; one of all is."""
        name = f"{PREFIX}sweeper"
        return bool(self._asked(lambda: self._client.set(name, os.getpid(), nx=True, px=int(every_s * 1000))))

    def attend(self, worker: str, for_s: float) -> None:
        """Counts a worker process as alive for so long from now on.

        Args:
            worker: names the process.
        """
        self._run("ATTEND", worker, int(for_s * 1000))

    def overview(self, named: int) -> Overview:
        """How much waits, runs and has ended, and this many of the tasks; it costs the same however many there are."""
        return overview_of(self._run("OVERVIEW", named))

    def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        self._client.close()
        self._withdrawals.close()

    def _greeted(self) -> tuple[float, bytes]:
        """The server's clock less ours, never too much, and the key of ids."""
        hello = self._hello
        if hello is None or self._clock() - hello[2] > _HELLO_LASTS_S:
            now_us, id_key = self._run("HELLO", os.urandom(ids.KEY_BYTES))
            now = self._clock()
            hello = self._hello = (int(now_us) / 1e6 - now, id_key, now)
        return hello[0], hello[1]

    def _run(self, script: str, *args: Any) -> Any:
        return self._asked(lambda: self._scripts[script](keys=[f"{PREFIX}queue"], args=args))

    def _asked(self, ask: Callable[[], Any]) -> Any:
        self._outage.check()
        try:
            answer = ask()
        except redis.RedisError as exc:
            self._hello = None
            if "OOM" in str(exc) or isinstance(exc, redis.exceptions.OutOfMemoryError):
                self._outage.is_over()
                raise QueueUnavailable("The queue's server is full.", retry_after_s=5) from exc
            self._outage.has_begun(exc)
            raise QueueUnavailable("The queue is not available.", retry_after_s=_STAYS_AWAY_S) from exc
        self._outage.is_over()
        return answer


def _record(found: list[Any]) -> Record:
    state, outcome, submitted, now = found
    if not state:
        return Record("", {}, 0.0)
    age_s = max(0.0, (int(now) - int(submitted)) / 1e6)
    return Record(state.decode(), unpacked(outcome) if outcome else {}, age_s)


_LOST_OUTCOME = packed({"error": _LOST, "code": PoolClosed.code})
