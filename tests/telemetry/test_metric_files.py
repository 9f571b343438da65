import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.patience import GIVE_UP_S

ROOT = Path(__file__).parents[2]
KINDS = ("counter", "gauge_livesum", "histogram")

# The parent is a server's master; each child a worker that counts one call and says when it has.
PROLOGUE = """
import os, signal, sys
from deepseek_client.telemetry import metrics
from deepseek_client.events import CallFinished, PoolChanged, emit

metrics.install()
called = CallFinished("chat", "async", 0.1, 0.2, "overloaded", {}, 0)

def worker(live):
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        emit(PoolChanged(workers=5))
        emit(called)
        os.write(told, b".")
        signal.pause() if live else os._exit(0)
    os.read(ready, 1)
    return pid

def end(pid, number=signal.SIGKILL):
    os.kill(pid, number)
    os.waitpid(pid, 0)

def show():
    sys.stdout.write(metrics.exposition()[0].decode())
"""


def run(tmp_path, script):
    """The metrics that a server shows in the end, and the files that it leaves."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore:This process",
            "-c",
            PROLOGUE + script,
        ],  # it forks beside threads on purpose
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    values = {}
    for family in text_string_to_metric_families(done.stdout):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0) + sample.value
    return values, sorted(file.name for file in tmp_path.glob("deepseek/*.db"))


def test_a_hundred_workers_leave_the_files_of_one(tmp_path):
    """Workers that follow one another lose no count, and the directory does not grow."""
    values, files = run(tmp_path, "for _ in range(100): os.waitpid(worker(live=False), 0)\nshow()")
    assert values["deepseek_requests_total"] == 100
    assert values["deepseek_errors_total"] == 100
    assert values["deepseek_duration_seconds_count"] == 100
    assert values["deepseek_duration_seconds_sum"] == pytest.approx(30)
    assert files == ["counter_0.db", "histogram_0.db"]  # the master forgot what the last of them was


def test_workers_that_live_together_count_apart(tmp_path):
    """Four workers at once write files of their own, and are summed; so do those that come in the place of two."""
    values, files = run(
        tmp_path,
        """
workers = [worker(live=True) for _ in range(4)]
end(workers[1])
end(workers[2])
workers[1:3] = [worker(live=True) for _ in range(2)]
show()
for pid in workers: end(pid)
""",
    )
    assert values["deepseek_requests_total"] == 6
    assert values["deepseek_pool_workers"] == 20
    assert {name.rpartition("_")[2] for name in files} == {f"{number}.db" for number in range(4)}


def test_gauges_of_the_dead_are_forgotten(tmp_path):
    """A worker that was killed no longer counts among the present, before another one takes its place and after."""
    values, _ = run(
        tmp_path, "first, second = worker(live=True), worker(live=True)\nend(first)\nshow()\nend(second)"
    )
    assert values["deepseek_pool_workers"] == 5
    assert values["deepseek_requests_total"] == 2


def test_asking_gives_up_no_number(tmp_path):
    """A worker that shows the metrics keeps its own files: the next worker does not take them."""
    values, _ = run(
        tmp_path,
        """
emit(called)
show_and_drop, sys.stdout = sys.stdout, open(os.devnull, "w")
show()
sys.stdout = show_and_drop
first = worker(live=True)
emit(called)
show()
end(first)
""",
    )
    assert values["deepseek_requests_total"] == 3


def test_other_files_of_the_directory_are_left_alone(tmp_path):
    """A lock that is not ours does not keep the metrics from being shown."""
    (tmp_path / "deepseek").mkdir()
    (tmp_path / "deepseek" / "app.lock").touch()
    values, _ = run(tmp_path, "emit(called)\nshow()")
    assert values["deepseek_requests_total"] == 1


def test_threads_that_ask_at_once_forget_nobody_who_lives(tmp_path):
    """Many scrapes at once, while workers come and go, never take away what a living worker says."""
    values, _ = run(
        tmp_path,
        """
from concurrent.futures import ThreadPoolExecutor
living = worker(live=True)
with ThreadPoolExecutor(4) as threads:
    for _ in range(20):
        end(worker(live=True))
        list(threads.map(lambda _: metrics.exposition(), range(8)))
show()
end(living)
""",
    )
    assert values["deepseek_pool_workers"] == 5
    assert values["deepseek_requests_total"] == 21


def test_a_directory_that_is_cleaned_away_costs_counts_only(tmp_path):
    """Metrics go on in a new directory when somebody removes theirs: what a living process counted is in it again."""
    values, files = run(
        tmp_path / "metrics",
        """
import shutil
emit(called)
end(worker(live=True))
shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])
metrics.exposition()
workers = [worker(live=True) for _ in range(2)]
show()
for pid in workers: end(pid)
""",
    )
    assert values["deepseek_requests_total"] == 3
    assert files == [
        f"{kind}_{number}.db" for kind in KINDS for number in (0, 1, 2) if kind[0] != "g" or number
    ]


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"\x40\x00\x00\x00"], ids=["empty", "noise", "cut"])
def test_a_broken_file_is_not_adopted(tmp_path, damage):
    """A worker that takes a number whose file is damaged begins it anew, and says so."""
    script = f"""
import glob, logging
logging.basicConfig(stream=sys.stdout, format="# %(message)s")
end(worker(live=True))
(broken,) = glob.glob(os.environ["PROMETHEUS_MULTIPROC_DIR"] + "/deepseek/counter_0.db")
open(broken, "wb").write({damage!r})
end(worker(live=True))
show()
"""
    values, _ = run(tmp_path, script)
    assert values["deepseek_requests_total"] == 1


def test_locks_stay_young(tmp_path):
    """A scrape touches the locks: what removes old files must not give the number of a living process away."""
    run(
        tmp_path,
        """
emit(called)
pid = worker(live=True)
for number in (0, 1):
    os.utime(os.path.join(os.environ["PROMETHEUS_MULTIPROC_DIR"], "deepseek", f"{number}.lock"), (1, 1))
show()
end(pid)
""",
    )
    locks = tmp_path / "deepseek"
    assert [(locks / f"{number}.lock").stat().st_mtime > 1 for number in (0, 1)] == [True, True]
