"""Sends lost tasks again. Each worker process has a sweeper, and one of all sweeps at a time."""

from __future__ import annotations

import logging
import secrets
import threading

from ..errors import QueueUnavailable
from ..events import TaskRequeued, emit
from .ledger import Ledger

__all__ = ["Sweeper"]

_logger = logging.getLogger(__name__)

_EVERY_S = 2.0
_GRACE_S = 3.0
_ALIVE_FOR = 3  # rounds: one that is late is no death


class Sweeper:
    """Gives a new message to each task that has neither a message nor a worker.

    kombu takes a message from the server first and notes it there afterwards: a worker that is killed in between
    leaves it nowhere. And a worker that is killed later leaves a task whose lease ends.

    Each round also tells the server that this process lives, for whoever looks at the queue.

    Threads: `start` begins a thread of its own; `stop` ends it and does not wait.
    """

    def __init__(self, ledger: Ledger, every_s: float = _EVERY_S, grace_s: float = _GRACE_S) -> None:
        self._ledger = ledger
        self._every_s = every_s
        self._grace_s = grace_s
        self._stopped = threading.Event()
        self._name = secrets.token_hex(8)

    def start(self) -> None:
        """Sweeps from now on."""
        threading.Thread(target=self._sweep_on, name="task-sweeper", daemon=True).start()

    def stop(self) -> None:
        """Sweeps no more; another process's sweeper does."""
        self._stopped.set()

    def sweep(self) -> int:
        """Sends again what is lost, and returns how many tasks that were."""
        lost = self._ledger.sweep(self._grace_s)
        resent = 0
        for task in reversed(lost):  # the oldest one last: it lies in front then
            if self._ledger.resend(task):
                resent += 1
                emit(TaskRequeued())
                _logger.warning("task %s had neither a message nor a worker: sent again", task.task_id)
        return resent

    def _sweep_on(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self._ledger.attend(self._name, _ALIVE_FOR * self._every_s)
                if self._ledger.may_sweep(self._every_s):
                    self.sweep()
            except QueueUnavailable:
                continue
            except Exception:  # the edge of a thread
                _logger.exception("the sweep for lost tasks failed")
