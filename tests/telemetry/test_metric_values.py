"""Metrics on a disk that is full, read-only, or has room again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.blocking import Clock
from support.patience import GIVE_UP_S

from deepseek_client.telemetry import metric_directory, metric_values
from deepseek_client.telemetry.metric_values import Family, Values

ROOT = Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path):
    """A file system of 64 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode and "CI" not in os.environ:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.strip()}")
    assert mounted.returncode == 0, mounted.stderr
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


# Runs in a process of its own, which a SIGBUS would end.
PROLOGUE = """
import logging, os, sys
from pathlib import Path
from deepseek_client.events import CallFinished, RequestFinished, emit
from deepseek_client.telemetry import metrics
from deepseek_client.telemetry.metric_values import Values

disk, ballast, now = Path(sys.argv[1]), Path(sys.argv[1], "ballast"), [0.0]
metrics._of_process = metrics._Metrics(Values(clock=lambda: now[0]))
metrics.install()

def fill():
    with ballast.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(512)): pass
        except OSError: pass

def call(error=None):
    emit(CallFinished("chat", "async", 0.1, 0.2, error, {}, 1))

def requests(routes):
    for route in range(routes):
        emit(RequestFinished("GET", f"/route/{route:0100}", 200, 0.1))

def show(title):
    print("#", title)
    print(metrics.exposition()[0].decode(), flush=True)
"""


each_system = pytest.mark.parametrize(
    "system", ["", "import os; del os.posix_fallocate"], ids=["Linux", "macOS"]
)


def run(disk, script, system=""):
    """What the process showed under each title, and its lines on stderr."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", system + PROLOGUE + script, str(disk)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PROMETHEUS_MULTIPROC_DIR": str(disk)},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    shown = {}
    for text in done.stdout.split("# HELP deepseek_requests_total")[:-1]:
        title = text.splitlines()[-1].removeprefix("# ")
        shown[title] = totals(done.stdout.partition(f"# {title}\n")[2].partition("\n\n")[0])
    return shown, done.stderr.splitlines()


def totals(text):
    """Each metric's sum over all its labels."""
    found = {}
    for family in text_string_to_metric_families(text + "\n"):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_this_disk_kills_who_maps_first_and_asks_later(disk):
    """The library's own files on this disk, which they fill by half, end the process with SIGBUS."""
    script = """
import os, sys
from prometheus_client import Counter
with open(sys.argv[1] + "/ballast", "wb", buffering=0) as file:
    try:
        while file.write(bytes(512)): pass
    except OSError: pass
Counter("x", "x").inc()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(disk)],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(disk)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGBUS


@each_system
def test_full_at_the_start(disk, system):
    """The process counts alone, says so once, tries again once a minute, and then all is in the files."""
    shown, lines = run(
        disk,
        """
fill()
for _ in range(3): call("bad_reply")
show("full")
now[0] += 59; ballast.unlink(); call(); show("too early")
now[0] += 1; call(); show("room")
pid = os.fork()
if pid == 0:
    show("another process")
    os._exit(0)
os.waitpid(pid, 0)
""",
        system,
    )
    assert [values["deepseek_requests_total"] for values in shown.values()] == [3, 4, 5, 5]
    assert [values["deepseek_errors_total"] for values in shown.values()] == [3, 3, 3, 3]
    assert [values["deepseek_duration_seconds_count"] for values in shown.values()] == [3, 4, 5, 5]
    assert ["alone" in line for line in lines if "metrics:" in line] == [True, False]


@each_system
def test_filling_while_it_runs(disk, system):
    """What has its room goes on into the files, what has none is kept and shown, and nothing is lost or said twice."""
    shown, lines = run(
        disk,
        """
call()
fill()
for _ in range(2): requests(60); call("bad_reply")
show("full")
now[0] += 60; requests(60); show("still full")
ballast.unlink(); now[0] += 60
requests(1); show("room")
call(); show("after")
""",
        system,
    )
    requests = [values["http_requests_total"] for values in shown.values()]
    assert requests == [120, 180, 181, 181]
    assert [values["http_request_duration_seconds_count"] for values in shown.values()] == requests
    assert [values["deepseek_requests_total"] for values in shown.values()] == [3, 3, 3, 4]
    assert [values["deepseek_errors_total"] for values in shown.values()] == [2, 2, 2, 2]
    assert len([line for line in lines if "alone" in line]) == 1


def test_others_read_on_a_full_disk(disk):
    """A scrape of a process that counts nothing shows what is in the files, with no block left on the disk."""
    shown, _ = run(
        disk,
        """
call("bad_reply"); fill(); requests(60)
print("# other")
print(metrics.exposition_of(disk / "deepseek")[0].decode())
""",
    )
    assert shown["other"]["deepseek_errors_total"] == 1


def test_new_processes_on_a_full_disk(disk):
    """A worker that starts when the disk is full shows its own counts beside the others', and loses none later."""
    shown, _ = run(
        disk,
        """
call(); fill()
pid = os.fork()
if pid == 0:
    call("bad_reply")
    show("worker")
    ballast.unlink()
    metrics._of_process.values._clock = lambda: 1e9
    call("bad_reply")
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
show("all")
""",
    )
    assert shown["worker"]["deepseek_requests_total"] == 2
    assert shown["all"]["deepseek_requests_total"] == 3
    assert shown["all"]["deepseek_errors_total"] == 2


def test_read_only(disk):
    """On a read-only file system the process counts alone, in memory."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    shown, lines = run(disk, 'call(); call("bad_reply"); show("ro")')
    assert (shown["ro"]["deepseek_requests_total"], shown["ro"]["deepseek_errors_total"]) == (2, 1)
    assert len([line for line in lines if "alone" in line]) == 1


@pytest.fixture
def values(monkeypatch, tmp_path):
    """Values on a clock that stands still, in a directory that the test has to make."""

    class Where:
        path = tmp_path / "metrics"
        looks = 0

        def __call__(self):
            self.looks += 1
            self.path.stat()
            return self.path

    monkeypatch.setattr(metric_values, "directory", Where())
    values = Values(clock=Clock())
    yield values
    values.close()


def test_one_look_a_minute(values, caplog):
    """However much is counted, a process without a place looks for one once a minute."""
    where, counter = metric_values.directory, Family(values, "counter", "x_total", "X.")
    for second in range(180):
        values._clock.now = 1000.0 + second
        for _ in range(10):
            counter.add()
            values.settle()
            values.settle(look=True)
    assert where.looks == 3
    assert len(caplog.records) == 1
    where.path.mkdir()
    values._clock.now += 60
    values.settle()
    assert counter.in_memory().samples[0].value == 0
    assert values.files.file("counter").get(counter._series[()].keys[0]) == 1800
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_a_cleaned_directory_is_left_once_a_minute(values):
    """Who counts and is never asked notices within a minute that its files are gone, and brings all counts along."""
    where, counter = metric_values.directory, Family(values, "counter", "x_total", "X.")
    where.path.mkdir()
    counter.add(amount=5)
    values.settle()
    for file in where.path.iterdir():
        file.unlink()
    counter.add()
    values.settle()
    assert list(where.path.iterdir()) == []
    values._clock.now += 60
    values.settle()
    assert values.files.file("counter").get(counter._series[()].keys[0]) == 6


@pytest.mark.parametrize("lost", ["0.lock", "counter_0.db", "gauge_livesum_0.db"])
def test_one_file_that_is_lost_counts_nothing_twice(values, lost):
    """Whichever file is removed, what it had is in a new one, and what others have goes on from there."""
    where = metric_values.directory
    counter, gauge = Family(values, "counter", "x_total", "X."), Family(values, "gauge", "y", "Y.")
    where.path.mkdir()
    counter.add(amount=5)
    gauge.add(amount=3)
    values.settle()
    (where.path / lost).unlink()
    counter.add()
    values.settle(look=True)
    counter.add()
    values.settle()
    assert values.files.file("counter").get(counter._series[()].keys[0]) == 7
    assert values.files.file("gauge_livesum").get(gauge._series[()].keys[0]) == 3


def test_directory_is_found_where_it_may_be(monkeypatch, tmp_path, disk):
    """Where TMPDIR is read-only, metrics are shared in the next place that is not."""
    monkeypatch.setattr(metric_directory, "_LAST_PLACES", (str(disk), str(tmp_path)))
    monkeypatch.setenv("TMPDIR", str(disk))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert metric_directory.directory().parent == tmp_path
