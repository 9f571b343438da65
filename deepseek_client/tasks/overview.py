"""The queue as a whole, for somebody who watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ListedTask", "Overview", "overview_of"]


@dataclass(frozen=True)
class ListedTask:
    """A task that has not ended; what was asked is not told.

    Attributes:
        status: "pending" or "started".
        method: of the client.
        age_s: seconds since its submission.

    Threads: immutable.
    """

    task_id: str
    status: str
    method: str
    age_s: float


@dataclass(frozen=True)
class Overview:
    """The queue at one moment.

    Attributes:
        queued, running: tasks that wait, and that a worker has.
        completed, failed: tasks that have ended so in the last 50 to 60 minutes.
        oldest_s: seconds that the oldest waiting task has waited; 0 if none waits.
        workers: worker processes that live, or did so six seconds ago.
        tasks: some of those that have not ended: first what runs, then what has waited longest.

    Threads: immutable.
    """

    queued: int
    running: int
    completed: int
    failed: int
    oldest_s: float
    workers: int
    tasks: tuple[ListedTask, ...]


def overview_of(found: list[Any]) -> Overview:
    """Returns what the server's script has found."""
    now_us, queued, running, completed, failed, workers, oldest, tasks = found
    return Overview(
        queued,
        running,
        completed,
        failed,
        _age_s(now_us, oldest) if oldest else 0.0,
        workers,
        tuple(
            ListedTask(task_id.decode(), state.decode(), method.decode(), _age_s(now_us, submitted))
            for task_id, state, method, submitted in tasks
        ),
    )


def _age_s(now_us: bytes, since_us: bytes) -> float:
    return max(0.0, (float(now_us) - float(since_us)) / 1e6)
