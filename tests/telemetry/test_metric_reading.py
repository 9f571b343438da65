"""What a process that only looks reads of those that count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.patience import GIVE_UP_S

from deepseek_client import events
from deepseek_client.telemetry import metric_reading, metrics
from deepseek_client.telemetry.metric_directory import directories_of, directory
from deepseek_client.telemetry.metric_reading import Series, read_metrics

ROOT = Path(__file__).parents[2]

# A worker that has counted, waits for its input to end, and then ends as if it was killed.
WORKER = """
import os, sys
from deepseek_client.telemetry import metrics
from deepseek_client.events import CallFinished, PoolChanged, emit

metrics.install()
emit(PoolChanged(workers=5))
for _ in range(int(sys.argv[1])):
    emit(PoolChanged(busy=1))
    emit(CallFinished("chat", "async", 0.3, 1.5, "overloaded", {}, 1))
print("counted", flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Starts a process that counts so many calls in a directory that all share."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    started = []

    def start(calls):
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(calls)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "counted\n"
        return process

    yield start
    for process in started:
        process.communicate(timeout=GIVE_UP_S)


def test_totals_are_sums_and_gauges_belong_to_a_process(worker, tmp_path):
    """Counters are summed over all processes, gauges stand beside the pid of who holds the number."""
    first, second = worker(2), worker(3)
    reading = read_metrics([tmp_path / "deepseek"])
    labels = (("method", "chat"), ("mode", "async"))
    assert reading.totals[Series("deepseek_requests_total", labels)] == 5
    assert reading.totals[Series("deepseek_ran_seconds_sum", ())] == pytest.approx(7.5)
    busy = {process.pid: process.gauges["deepseek_pool_busy"] for process in reading.processes}
    assert busy == {first.pid: 2, second.pid: 3}


def test_what_has_ended_counts_and_is_no_process(worker, tmp_path):
    """A worker that was killed leaves its counts, and no gauge of it is shown."""
    worker(2).communicate(timeout=GIVE_UP_S)
    reading = read_metrics([tmp_path / "deepseek"])
    assert (
        sum(value for series, value in reading.totals.items() if series.name == "deepseek_requests_total")
        == 2
    )
    assert reading.processes == ()


def test_buckets_are_not_cumulative(worker, tmp_path):
    """Each bucket counts its own observations; the text for Prometheus adds those below."""
    worker(2)
    found = {
        dict(series.labels)["le"]: value
        for series, value in read_metrics([tmp_path / "deepseek"]).totals.items()
        if series.name == "deepseek_duration_seconds_bucket"
    }
    assert {bound: count for bound, count in found.items() if count} == {"2.0": 2}


def test_without_locks_gauges_have_no_pid(worker, tmp_path, monkeypatch):
    """A system that does not tell who holds a lock shows the gauges without saying whose they are."""
    worker(2)
    monkeypatch.setattr(metric_reading, "_LOCKS", tmp_path / "nowhere")
    [process] = read_metrics([tmp_path / "deepseek"]).processes
    assert (process.pid, process.gauges["deepseek_pool_workers"]) == (0, 5)


def test_directory_that_is_gone():
    """A server that has ended in between has counted nothing."""
    assert read_metrics([Path("/nowhere/deepseek")]).totals == {}


def test_damaged_file_costs_its_own_numbers_only(worker, tmp_path):
    """What a full disk left half written is passed over."""
    worker(2)
    (tmp_path / "deepseek" / "counter_7.db").write_bytes(b"\xff\xff\xff\x7f")
    totals = read_metrics([tmp_path / "deepseek"]).totals
    assert totals[Series("deepseek_ran_seconds_sum", ())] == 3


def test_directories_of_a_server_are_found_by_any_of_its_processes(monkeypatch, tmp_path):
    """Its first process and their children lead to the directory that its workers count in."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made = directory()
    assert made in directories_of([os.getpid()])
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert directories_of([child.pid]) == [made]
    finally:
        child.communicate(b"\n", timeout=GIVE_UP_S)


def test_several_directories_are_shown_as_one(worker, tmp_path, monkeypatch):
    """exposition_of() sums over the servers of several directories."""
    worker(2)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "other"))
    worker(3)
    monkeypatch.setattr(events, "listeners", ())
    text = metrics.exposition_of(tmp_path / "deepseek", tmp_path / "other" / "deepseek")[0].decode()
    shown = {
        (sample.name, sample.labels.get("mode"), sample.labels.get("method")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert shown["deepseek_requests_total", "async", "chat"] == 5
