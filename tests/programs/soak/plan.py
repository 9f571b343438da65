"""How the application is set up, and when there is load, when rest, when the API is down, and when the disk is full."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CLIENTS", "DEADLINE_S", "QUEUE_LIMIT", "THREADS", "WORKERS", "Stretch", "plan_of"]

THREADS = 16
"""WEB_THREADS of the one worker process."""

CLIENTS = 14
"""Fewer than the threads: one is left for who asks for the status."""

WORKERS = 8
"""LLM_MAX_WORKERS; fewer than the clients, so that calls have to wait."""

QUEUE_LIMIT = 8
"""LLM_QUEUE_LIMIT; calls of all THREADS find a place, batches of WORKERS prompts beside them do not."""

DEADLINE_S = 1.0
"""LLM_DEADLINE_S; what hangs holds its worker that long."""

_FIRST_S = 10.0
_SHORTEST_S = 6.0  # a rest takes about 2 s of the next stretch
_LONGEST_S = 60.0
_STRETCHES = 6
_OUTAGE_EVERY = 3
_OUTAGE_S = 3.0
_FULL_FROM, _FULL_TO = 0.5, 0.75  # of each stretch but the first, with which the others are compared
_BREAKER_S = 10.0  # for which it refuses every call after an outage


class Stretch(NamedTuple):
    """Load until `ends_s` of the run, then a rest.

    The API is down from `down_s` to `up_s`, and the disk is full from `full_s` to `free_s`; None if that never happens.
    """

    ends_s: float
    down_s: float | None = None
    up_s: float | None = None
    full_s: float | None = None
    free_s: float | None = None

    def is_down(self, elapsed_s: float) -> bool:
        """Whether the API is down at this moment of the run."""
        return _is_between(elapsed_s, self.down_s, self.up_s)

    def is_full(self, elapsed_s: float) -> bool:
        """Whether the disk is full at this moment of the run."""
        return _is_between(elapsed_s, self.full_s, self.free_s)


def plan_of(minutes: float) -> list[Stretch]:
    """The stretches of a run. What is seen at rest after the first of them is what all is compared with.

    It ends after 10 s, or after a third of a run that is shorter than 30 s.
    """
    total_s = minutes * 60
    first_s = min(_FIRST_S, total_s / 3)
    rest_s = total_s - first_s
    count = max(1, min(_STRETCHES, int(rest_s / _SHORTEST_S)), round(rest_s / _LONGEST_S))
    length_s = rest_s / count
    stretches = [Stretch(first_s)]
    for number in range(1, count + 1):
        began_s = first_s + (number - 1) * length_s
        is_broken = number % _OUTAGE_EVERY == 2 and length_s > _OUTAGE_S + _BREAKER_S
        outage = (began_s + length_s / 4, began_s + length_s / 4 + _OUTAGE_S) if is_broken else (None, None)
        full = (began_s + length_s * _FULL_FROM, began_s + length_s * _FULL_TO)
        stretches.append(Stretch(began_s + length_s, *outage, *full))
    return stretches


def _is_between(elapsed_s: float, begin_s: float | None, end_s: float | None) -> bool:
    return begin_s is not None and end_s is not None and begin_s <= elapsed_s < end_s
