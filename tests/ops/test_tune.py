"""The tuner's arithmetic, and one sweep against real sandboxes."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
from typing import Any, ClassVar

import pytest
from flask import Flask
from support.serving import reply

from deepseek_client.__main__ import main
from deepseek_client.flask import DeepSeek
from deepseek_client.ops.refusal import Refusal
from deepseek_client.ops.tune import model, observed, report
from deepseek_client.ops.tune.measure import Order, measured
from deepseek_client.ops.tune.workload import Latency, Workload

PROFILE = Workload(20.0, Latency(200.0, 500.0))


def row(workers: int, waited_p95_ms: float, *, failed: int = 0, cpu_ms: float = 1.0) -> report.Row:
    return report.Row("threads", workers, 20.0, waited_p95_ms, waited_p95_ms, failed, cpu_ms, 40.0)


def test_durations_follow_the_profile():
    """Half of the calls take the median at most, 19 of 20 the 95th percentile, and they come at the rate."""
    durations = sorted(PROFILE.durations_s(20_000, 1))
    assert durations[10_000] == pytest.approx(0.2, rel=0.05)
    assert durations[19_000] == pytest.approx(0.5, rel=0.05)
    assert statistics.fmean(durations) * 1000 == pytest.approx(PROFILE.latency.mean_ms, rel=0.05)
    assert 20_000 / PROFILE.arrivals_s(20_000, 1)[-1] == pytest.approx(20, rel=0.05)


def test_same_load_for_each_number():
    """The same seed gives the same calls, another one others."""
    assert PROFILE.arrivals_s(50, 7) == PROFILE.arrivals_s(50, 7) != PROFILE.arrivals_s(50, 8)
    assert PROFILE.durations_s(50, 7) == PROFILE.durations_s(50, 7) != PROFILE.durations_s(50, 8)


def test_waits_of_a_queue():
    """First come, first served: who finds all workers busy waits for the first that is free."""
    assert model.waits_s(1, [0, 1, 2], [3, 3, 1]) == [0, 2, 4]
    assert model.waits_s(2, [0, 1, 2], [3, 3, 1]) == [0, 0, 1]
    assert model.waits_s(3, [0, 1, 2], [3, 3, 1]) == [0, 0, 0]


def test_one_server_waits_as_theory_says():
    """With one worker and exponential times, the mean wait is that of the M/M/1 queue."""
    exponential = Workload(1.0, Latency(1.0, 1.0))
    arrivals, services = exponential.arrivals_s(200_000, 1), exponential.arrivals_s(200_001, 2)
    durations = [(after - before) / 2 for before, after in itertools.pairwise(services)]
    expected_s = 0.5 / (2 - 1)  # rho / (mu - lambda)
    assert statistics.fmean(model.waits_s(1, arrivals, durations)) == pytest.approx(expected_s, rel=0.05)


@pytest.mark.parametrize(
    ("rate", "p50_ms", "p95_ms"), [(20, 200, 500), (0.1, 100, 100), (300, 50, 400), (5, 900, 30_000)]
)
def test_needed_is_the_smallest(rate, p50_ms, p95_ms):
    """The model's answer is accepted, and one worker less is not."""
    workload = Workload(rate, Latency(p50_ms, p95_ms))
    needed = model.workers_needed(workload)
    arrivals, durations = workload.arrivals_s(20_000, 1), workload.durations_s(20_000, 1)
    p95 = [
        1000 * model.percentile(model.waits_s(workers, arrivals, durations), 95)
        for workers in (needed, needed - 1)
        if workers
    ]
    assert p95[0] < p50_ms / 10
    assert needed == 1 or p95[1] >= p50_ms / 10


def test_needed_of_a_load_that_no_process_carries():
    """5,400 calls in flight want the most workers that LLM_MAX_WORKERS allows, not more."""
    needed = model.workers_needed(Workload(1000.0, Latency(5000.0, 10_000.0)))
    assert needed == 1000
    assert max(model.counts_to_try(needed)) == 1000


@pytest.mark.parametrize(
    ("rate", "p50_ms", "p95_ms"),
    [(20, 200, 500), (0.1, 100, 100), (2, 1500, 4000), (10, 1500, 12_000), (300, 50, 400), (5, 900, 30_000)],
)
def test_console_and_tuner_agree(rate, p50_ms, p95_ms):
    """With the console's number no call waits notably, and it is at most a fifth and one more than the fewest such."""
    workload = Workload(rate, Latency(p50_ms, p95_ms))
    needed = model.workers_needed(workload)
    assert needed <= model.with_headroom(workload) <= 1.2 * needed + 1
    assert model.with_headroom(workload) in model.counts_to_try(needed, model.with_headroom(workload))


def test_few_calls_stand_for_many():
    """The calls that are measured wait as the load does in the long run, with the workers needed and with fewer."""
    needed = model.workers_needed(PROFILE)
    seed = model.typical_seed(PROFILE, 600, needed)

    def p95_ms(workers, calls, seed):
        waits = model.waits_s(workers, PROFILE.arrivals_s(calls, seed), PROFILE.durations_s(calls, seed))
        return 1000 * model.percentile(waits, 95)

    assert 600 / PROFILE.arrivals_s(600, seed)[-1] == pytest.approx(PROFILE.rate, rel=0.03)
    for workers in (needed - 2, needed - 1, needed, needed + 1):
        assert p95_ms(workers, 600, seed) == pytest.approx(p95_ms(workers, 20_000, 9), rel=0.25, abs=10)


def test_times_are_in_the_order_of_arrival(sandbox):
    """The times of each call are at its place, also when a later call has ended earlier, and one has failed."""
    slow, quick = {"fault": "ok", "latency_ms": 600}, {"fault": "ok", "latency_ms": 1}
    sandbox.script([quick, slow, {"fault": "status", "status": 422}, quick, quick])  # the first one warms up
    seen = measured(Order(4, "threads", [0.0, 0.1, 0.2, 0.3], sandbox.url, "sk-test", "", 60.0))
    assert (seen.arrivals_s, seen.failed) == ([0.0, 0.2, 0.3], 1)
    assert seen.ran_s[0] >= 0.6 > max(seen.ran_s[1:])


def test_no_proxy_is_asked_for_the_sandbox(sandbox, monkeypatch):
    """A proxy of the environment, which cannot reach this machine, is left out."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    seen = measured(Order(1, "threads", [0.0], sandbox.url, "sk-test", "", 60.0))
    assert (len(seen.ran_s), seen.failed) == (1, 0)


@pytest.mark.parametrize(
    ("values", "percent", "expected"), [([3, 1, 2], 50, 2), ([1], 95, 1), (range(1, 101), 95, 95)]
)
def test_percentile(values, percent, expected):
    """The value that so many percent do not exceed."""
    assert model.percentile(list(values), percent) == expected


@pytest.mark.parametrize("needed", [1, 2, 9, 100, 1000])
def test_counts_surround_the_answer(needed):
    """The sweep has the model's answer, smaller and larger ones where there are such, and none that is refused."""
    counts = model.counts_to_try(needed)
    assert needed in counts
    assert counts == sorted(set(counts))
    assert counts[0] >= 1
    assert counts[-1] <= 1000
    assert needed == 1 or counts[0] < needed
    assert needed == 1000 or counts[-1] > needed


class TestRecommendation:
    """The fewest workers whose waiting nobody would notice."""

    def test_fewest_accepted(self):
        """The smallest number under a tenth of the median, whatever the larger ones give."""
        rows = [row(4, 900), row(8, 30), row(9, 19.9), row(12, 25), row(16, 0)]
        best = report.recommended(rows, 200)
        assert best is not None
        assert best.workers == 9

    def test_none_is_enough(self):
        """Without an accepted one nothing is recommended, and the sentence says what the largest gave."""
        rows = [row(4, 900), row(8, 300)]
        assert report.recommended(rows, 200) is None
        said = report.reason(None, rows, PROFILE)
        assert said.startswith("None of these is enough")
        assert "with 8 workers" in said
        assert "300 ms" in said

    def test_busy_machine_is_told(self):
        """Where the model's calls do not wait and the measured ones do, the machine is at fault, not the number."""
        rows = [row(4, 900), row(9, 30)._replace(modelled_p95_ms=0), row(18, 48)._replace(modelled_p95_ms=0)]
        assert report.reason(None, rows, PROFILE).endswith(
            "By the model 9 are enough: this machine was too busy to measure it."
        )

    def test_failures_are_not_accepted(self):
        """A number with which calls failed is not recommended, however short they waited."""
        assert report.recommended([row(4, 0, failed=1)], 200) is None

    def test_cheaper_engine(self):
        """Of two engines that need as many workers, the one that costs less CPU."""
        rows = [row(9, 5, cpu_ms=2.0), row(9, 8, cpu_ms=1.0)]
        assert report.recommended(rows, 200) == rows[1]

    def test_gap_is_halved(self):
        """Between too few and enough the middle is tried, until they are neighbours."""
        rows = [row(4, 900), row(12, 3)]
        assert report.next_count(rows, 200) == 8
        assert report.next_count([*rows, row(8, 3)], 200) == 6
        assert report.next_count([*rows, row(11, 900)], 200) is None
        assert report.next_count([row(4, 900)], 200) is None
        assert report.next_count([row(1, 0)], 200) is None

    def test_table_marks_it(self):
        """The table has a line for each row, and marks the recommended one."""
        rows = [row(4, 900), row(9, 5)]
        lines = report.lines(rows, rows[1])
        assert len(lines) == 3
        assert ["recommended" in line for line in lines] == [False, False, True]


class TestObserved:
    """A running deployment's metrics."""

    BEFORE: ClassVar = {0.1: 100.0, 0.5: 100.0, 1.0: 100.0, math.inf: 100.0}

    def test_between_two_scrapes(self):
        """Only what was counted between counts; percentiles lie evenly in their bucket; the rate is one process's."""
        after = {0.1: 150.0, 0.5: 200.0, 1.0: 200.0, math.inf: 200.0}
        load = observed.workload_between(self.BEFORE, after, 10.0, 2)
        assert load.rate == 5.0
        assert load.latency.p50_ms == pytest.approx(100)
        assert load.latency.p95_ms == pytest.approx(100 + 400 * 0.9)

    def test_beyond_the_last_bucket(self):
        """Calls longer than the last bound count as that bound."""
        after = {0.1: 100.0, 0.5: 100.0, 1.0: 150.0, math.inf: 200.0}
        assert observed.workload_between(self.BEFORE, after, 10.0, 1).latency.p95_ms == 1000

    def test_too_few(self):
        """A handful of calls tells nothing, and is refused with how many there were."""
        after = {bound: count + 5 for bound, count in self.BEFORE.items()}
        with pytest.raises(Refusal, match="5 calls ended in 10 s"):
            observed.workload_between(self.BEFORE, after, 10.0, 1)

    def test_page_of_a_deployment(self, sandbox, serve, monkeypatch):
        """A real page's rate and times become the load; a proxy of the environment is not asked about this machine."""
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        app, llm = Flask(__name__), DeepSeek(metrics_path="/metrics")
        app.config.update(DEEPSEEK_API_KEY="sk-test", DEEPSEEK_BASE_URL=sandbox.url)
        llm.init_app(app)
        visitor = app.test_client()
        server = serve(lambda handler: reply(handler, body=visitor.get("/metrics").data))
        sandbox.script([{"fault": "ok", "latency_ms": 100}] * 30)

        def calls(_: float) -> None:
            with app.app_context(), monkeypatch.context() as patch:
                patch.delenv("http_proxy")
                llm.wait(llm.client.chat_many_async(["x"] * 30))

        load = observed.observe(f"{server.url}/metrics", 1, 2, sleep=calls)
        assert (
            90 < load.latency.p50_ms < 10_000
        )  # on a busy machine; in other units it would be 0.1, or 100,000
        assert 0 < load.rate < 30 / 2 / 0.1

    def test_nobody_listens(self):
        """A page that cannot be read is one line."""
        with pytest.raises(Refusal, match=r"cannot read the metrics at http://127\.0\.0\.1:1/"):
            observed.observe("http://127.0.0.1:1/", 1, 1, sleep=lambda seconds: None)


class TestCommand:
    """`deepseek-client tune`."""

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
        code = main(["tune", *arguments])
        return (code, *capsys.readouterr())

    def test_sweep(self, capsys: pytest.CaptureFixture[str]):
        """A number that is too small waits, a large one does not, and the fewest accepted one is recommended."""
        # Five calls that take 0.4 s come in the first quarter of a second.
        code, output, error = self.run(
            capsys, *("--p50-ms", "400", "--p95-ms", "400", "--rate", "20", "--seconds", "0.25"),
            *("--workers", "1,5", "--json"),
        )  # fmt: skip
        said: dict[str, Any] = json.loads(output)
        few, enough = said["rows"]
        assert (few["workers"], enough["workers"]) == (1, 5)
        assert few["waited_p95_ms"] > 800
        assert few["failed"] == enough["failed"] == 0
        assert (said["recommended"], code) in ((5, 0), (None, 1))  # a busy machine may start the calls late
        assert error == ""

    def test_real(self, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path, sandbox):
        """--real makes as many calls as were agreed, and goes by the times that the API took, not by the profile."""
        monkeypatch.setenv("PYTHONPATH", os.getcwd())
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DEEPSEEK_BASE_URL", sandbox.url)
        monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-test")
        _, output, _ = self.run(
            capsys, "--real", "--yes", "--max-calls", "6", "--workers", "4", "--rate", "100", "--json",
            *("--p50-ms", "300000", "--p95-ms", "300000"),
        )  # fmt: skip
        said = json.loads(output)
        assert sandbox.stats()["requests"] == 6
        assert 0 < said["p50_ms"] <= said["p95_ms"] < 300_000
        assert f"model's median of {said['p50_ms']:.0f} ms" in said["reason"] or said["recommended"] is None

    @pytest.mark.parametrize(
        ("arguments", "code", "sentence"),
        [
            (("--p50-ms", "5", "--p95-ms", "2"), 2, "--p95-ms 2 is less than --p50-ms 5"),
            (("--real", "--max-calls", "3"), 1, "--max-calls 3 is too few"),
            (("--real", "--workers", "2", "--max-calls", "20"), 1, "not agreed: nothing was sent"),
        ],
        ids=["percentiles", "calls", "not_agreed"],
    )
    def test_refusals(
        self, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path, arguments, code, sentence
    ):
        """What cannot be done is one line and an exit code; nothing is sent without a yes."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DEEPSEEK_BASE_URL", "http://127.0.0.1:1")
        given, output, error = self.run(capsys, *arguments)
        assert (given, output) == (code, "")
        assert sentence in error.splitlines()[-1]

    def test_wrong_list(self, capsys: pytest.CaptureFixture[str]):
        """A list of workers with something else in it is refused by name and value."""
        with pytest.raises(SystemExit) as raised:
            main(["tune", "--workers", "3,x"])
        assert raised.value.code == 2
        assert "argument --workers: 'x': need workers from 1 to 1000" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["metrics", "file:///etc/hostname", "ftp://127.0.0.1/metrics", "http://"])
def test_address_of_no_metrics(url):
    """An address that no deployment serves at is a wrong argument; no file of this machine is read for it."""
    with pytest.raises(Refusal, match=r"need an address such as http://127\.0") as raised:
        observed.observe(url, 1, 1, sleep=lambda seconds: None)
    assert raised.value.exit_code == 2
