"""The console's figures beside the truth: files of metrics that a simulated server has written, read once a second."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest

from deepseek_client.events import AttemptFinished, CallFinished, PoolChanged, RequestFinished
from deepseek_client.queueing import enough_for
from deepseek_client.telemetry import metrics
from deepseek_client.telemetry.metric_reading import read_metrics
from deepseek_client.telemetry.metric_values import Values
from webapp.console.sample import sample_of
from webapp.console.sizing import size
from webapp.console.windows import POINT, load_between, point_of, start_of_load

SECONDS = 120
UNLIMITED = 1000


@dataclass
class Setup:
    """A server, and the calls that arrive at it: independent of each other, with times of lognormal spread."""

    rate: float
    ran_s: float
    workers: int
    slots: int = UNLIMITED  # requests that gunicorn takes at a time

    waited: list[float] = field(default_factory=list)
    ran: list[float] = field(default_factory=list)


class Simulation:
    """Plays the calls of a set-up, tells the metrics of them, and samples them at each second."""

    def __init__(self, setup, directory, monkeypatch):
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
        self.setup = setup
        self.counted = metrics._Metrics(Values())
        self.directory = directory / "deepseek"
        self.samples = []
        self.backlog = self.queued = self.busy = 0
        self.chance = random.Random(11)

    def run(self):
        setup, chance = self.setup, self.chance
        self.tell(PoolChanged(workers=setup.workers))
        events = [(float(second), 0, "look", 0.0) for second in range(SECONDS + 1)]
        now = 0.0
        while (now := now + chance.expovariate(setup.rate)) < SECONDS:
            events.append((now, 1, "arrive", now))
        heapq.heapify(events)
        at_the_door, in_queue, taken = [], [], 0
        order = 2
        while events:
            now, _, kind, came = heapq.heappop(events)
            if now > SECONDS:
                break
            if kind == "look":
                self.backlog = len(at_the_door)
                self.look(now)
                continue
            if kind == "arrive":
                at_the_door.append(now)
            else:
                taken -= 1
                self.busy -= 1
                self.tell(PoolChanged(busy=-1))
                ran_s = now - came[1]
                setup.ran.append(ran_s)
                setup.waited.append(came[1] - came[0])
                self.tell(AttemptFinished("chat", None, {}))
                self.tell(CallFinished("chat", "async", came[1] - came[0], ran_s, None, {}, 1))
                self.tell(RequestFinished("POST", "/talk", 200, now - came[0]))
            while at_the_door and taken < setup.slots:
                at_the_door.pop(0)
                in_queue.append(now)
                taken += 1
                self.tell(PoolChanged(queued=1))
            while in_queue and self.busy < setup.workers:
                begun = (in_queue.pop(0), now)
                self.busy += 1
                self.tell(PoolChanged(queued=-1, busy=1))
                order += 1
                ends = now + setup.ran_s * chance.lognormvariate(-0.125, 0.5)
                heapq.heappush(events, (ends, order, "end", begun))
        self.counted.values.close()
        return self

    def tell(self, event):
        self.counted.record(event)

    def look(self, now):
        reading = read_metrics([self.directory])
        self.samples.append(sample_of(now, ("one",), reading, [], self.backlog))


def percentile(values, share):
    return sorted(values)[int(share * len(values))]


SETUPS = {
    "too_small": Setup(rate=20, ran_s=0.5, workers=8),
    "fits": Setup(rate=20, ran_s=0.5, workers=18),
    "too_large": Setup(rate=8, ran_s=0.3, workers=20),
    "server_limit": Setup(rate=10, ran_s=0.5, workers=5, slots=2),
}


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """Plays a set-up, once."""
    played = {}

    def simulation_of(name):
        if name not in played:
            with pytest.MonkeyPatch.context() as monkeypatch:
                directory = tmp_path_factory.mktemp("metrics")
                played[name] = Simulation(SETUPS[name], directory, monkeypatch).run()
        return played[name]

    return simulation_of


def sizing_of(simulation):
    samples = simulation.samples[start_of_load(simulation.samples, 600) :]
    slots = simulation.setup.slots
    return size(load_between(samples, http_slots=slots if slots < UNLIMITED else 0))


@pytest.mark.parametrize("verdict", SETUPS)
def test_verdict_is_right(play, verdict):
    """Too small, right, too large, and sync workers that are the limit are each told for what they are."""
    assert sizing_of(play(verdict)).verdict == verdict


@pytest.mark.parametrize("name", SETUPS)
def test_times_are_within_a_tenth_of_the_truth(play, name):
    """How long a call runs, on average and at its 95th percentile, and how long it waits for a thread."""
    setup, sizing = play(name).setup, sizing_of(play(name))
    assert sizing.ran_mean_s == pytest.approx(sum(setup.ran) / len(setup.ran), rel=0.02)
    assert sizing.ran_p95_s == pytest.approx(percentile(setup.ran, 0.95), rel=0.1)
    assert sizing.waited_s == pytest.approx(sum(setup.waited) / len(setup.waited), rel=0.1, abs=0.002)


@pytest.mark.parametrize("name", ["too_small", "fits", "too_large"])
def test_demand_is_within_a_tenth_of_the_truth(play, name):
    """What arrives and would run at a time is that of the set-up, also where the pool cannot keep up with it."""
    setup, sizing = play(name).setup, sizing_of(play(name))
    assert sizing.rate == pytest.approx(setup.rate, rel=0.1)
    assert sizing.in_flight == pytest.approx(setup.rate * setup.ran_s, rel=0.1)
    assert sizing.needed == pytest.approx(enough_for(setup.rate * setup.ran_s), rel=0.1, abs=1)


def test_threads_are_those_of_what_arrives(play):
    """Where gunicorn is the limit, it is told threads for all that arrive, of which it serves less than half."""
    threads = sizing_of(play("server_limit")).values["threads"]
    assert threads == pytest.approx(enough_for(10 * 0.5), rel=0.2)


def test_points_are_the_last_seconds(play):
    """A point of the chart has the rate of its last five seconds, and the quantiles of its last ten."""
    simulation = play("too_small")
    point = dict(zip(POINT, point_of(simulation.samples), strict=True))
    recent = simulation.setup.ran[-160:]
    assert point["ok"] == pytest.approx(16, rel=0.25)
    assert point["ran_p50"] == pytest.approx(percentile(recent, 0.5), rel=0.2)
    assert (point["failed"], point["refused"], point["first_p50"]) == (0, 0, None)
    assert point["queued"] == simulation.samples[-1].queued > 50
