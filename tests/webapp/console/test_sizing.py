"""The arithmetic of the sizing, on loads that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.sizing_cases import CASES, LOAD

from deepseek_client.queueing import enough_for
from webapp.console.sizing import size

[SERVER_LIMIT] = [load for verdict, load, _ in CASES if verdict == "server_limit"]


def test_littles_law():
    """20 calls a second that run 0.5 s each are 10 at a time, whatever the pool has."""
    sizing = size(LOAD)
    assert (sizing.rate, sizing.ran_mean_s, sizing.in_flight) == (20, 0.5, 10)
    assert sizing.idle_share == pytest.approx(1 - 10 / 22)


@pytest.mark.parametrize(
    ("verdict", "load", "needed"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)]
)
def test_verdicts(verdict, load, needed):
    """Each set-up has its verdict, and the workers that would be right."""
    sizing = size(load)
    assert (sizing.verdict, sizing.needed) == (verdict, needed)


def test_bursts_are_seen_by_their_peak():
    """Calls that wait in a pool that is mostly idle come in bursts: it needs what one process had at most."""
    sizing = size(replace(LOAD, workers=20, waited_s=0.4, peak=34))
    assert (sizing.verdict, sizing.needed) == ("too_small", 34)


def test_sync_workers_need_threads_for_what_waits():
    """The threads that gunicorn is told to have are those of the requests that arrive, not of those it serves."""
    values = size(SERVER_LIMIT).values
    assert values["threads"] == enough_for(5)
    assert values["backlog"] == 40


def test_full_sync_workers_are_seen_without_a_backlog():
    """Where gunicorn's queue cannot be seen, workers that are all taken tell the same."""
    assert size(replace(SERVER_LIMIT, backlog=0, http_busy=1.9)).verdict == "server_limit"


def test_nothing_measured():
    """A server that nobody has called yet divides nothing by zero."""
    nothing = replace(LOAD, seconds=0, arrived=0, ran=0, ran_s=0, attempts=0, processes=0, workers=0)
    sizing = size(nothing)
    assert (sizing.verdict, sizing.needed, sizing.rate) == ("no_pool", 1, 0)
