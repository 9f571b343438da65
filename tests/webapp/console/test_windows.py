"""Points and loads from samples of servers that come, restart and go."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

import pytest

from deepseek_client.telemetry.metrics import _FINE_BUCKETS_S as BOUNDS
from webapp.console.histograms import histogram_of
from webapp.console.sample import Sample, Worker
from webapp.console.watching import Watch
from webapp.console.windows import POINT, load_between, point_of, start_of_load

WORKER = Worker(pid=1, threads=5)


def sample(at, ok=0.0, server=("one",), **more):
    ended = {"ok": ok, "failed": 0.0, "refused": 0.0}
    return Sample(at=at, server=server, workers=(WORKER,), ended=ended, **more)


def named(point):
    return dict(zip(POINT, point, strict=True))


def test_without_workers_there_is_a_gap():
    """While no process lives nothing is drawn, not even a zero."""
    numbers = named(point_of([sample(1.0), Sample(2.0)]))
    assert numbers.pop("at") == 2.0
    assert set(numbers.values()) == {None}


def test_first_calls_of_a_server_are_seen():
    """A server that had nothing to read until its first call began at 0."""
    idle = Sample(1.0, workers=(WORKER,))
    assert named(point_of([idle, sample(2.0, ok=3)]))["ok"] == 3


def test_what_was_counted_before_the_console_began_is_no_rate():
    """The first look at a server that has long been running says nothing about the last seconds."""
    assert named(point_of([Sample(1.0), sample(2.0, ok=5000)]))["ok"] is None


def test_restarted_server_is_another_one():
    """Counters of another server are not compared with those of the one before."""
    samples = [sample(1.0, ok=50), sample(2.0, ok=3, server=("two",)), sample(3.0, ok=5, server=("two",))]
    assert named(point_of(samples[:2]))["ok"] is None
    assert named(point_of(samples))["ok"] == 2


def test_window_begins_with_the_load():
    """Idle minutes before the first call are not counted, those after it are."""
    samples = [sample(float(at), ok=max(0, min(at, 8) - 4)) for at in range(12)]
    assert start_of_load(samples, 600) == 4
    assert start_of_load(samples, 3) >= 8
    load = load_between(samples[4:])
    assert (load.seconds, load.arrived) == (7, 4)


def test_calls_that_are_not_done_have_arrived():
    """What runs and waits at the end counts as arrived, what did so at the beginning does not."""
    start, end = sample(0.0), sample(10.0, ok=20)
    busy = replace(WORKER, busy=3, queued=4)
    assert load_between([start, replace(end, workers=(busy,))]).arrived == 27
    assert load_between([replace(start, workers=(busy,)), end]).arrived == 13


def test_back_offs_are_no_wait_for_a_thread():
    """Where calls were tried again their wait is that of the queue, by Little's law: none waits in an empty one."""
    waited = histogram_of([("1.0", 0), ("5.0", 20)], 60.0)
    start, end = sample(0.0), sample(10.0, ok=20, waited=waited)
    assert load_between([start, end]).waited_s == 3
    assert load_between([start, replace(end, retries=20)]).waited_s == 0


def test_watch_leaves_a_gap_where_it_has_not_looked():
    """Samples that are far apart have a point without numbers between them."""
    moments = iter([100.0, 101.0, 160.0])
    watch = Watch(lambda at: sample(at, ok=at), clock=lambda: next(moments))
    for _ in range(3):
        watch.sample()
    points = [kept.point for kept in watch.since(0)]
    assert [point.split(",")[1] for point in points] == ["null", "1.0", "null", "null"]
    assert [kept.number for kept in watch.since(2)] == [3, 4]


def test_number_of_another_watch_gives_all():
    """A page that an earlier console has served gets everything anew."""
    watch = Watch(lambda at: sample(at))
    watch.sample()
    assert len(watch.since(500)) == 1


def test_failing_look_is_said_once(caplog):
    """What cannot be looked at is a gap and one line of the log, and the next look may succeed."""
    looks = iter([OSError("gone"), OSError("gone"), None])

    def look(at):
        if (error := next(looks)) is not None:
            raise error
        return sample(at)

    watch = Watch(look)
    for _ in range(3):
        watch.sample()
    assert len(watch.since(0)) == 1
    assert [record.getMessage() for record in caplog.records] == ["the workers cannot be looked at"]


@pytest.mark.parametrize("value", [0.011, 0.2, 0.7, 3.3, 9.0, 41.0])
def test_quantile_of_equal_times_is_within_a_tenth(value):
    """A histogram in which all observations are the same gives that one, whatever it is."""
    counts = [0] * (len(BOUNDS) + 1)
    counts[bisect_left(BOUNDS, value)] = 50
    histogram = histogram_of(zip([*map(str, BOUNDS), "+Inf"], counts, strict=True), 50 * value)
    assert histogram.quantile(0.95) == pytest.approx(value, rel=0.1)
