import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepseek_client import events
from deepseek_client.events import (
    AttemptFinished,
    BreakerChanged,
    CallAborted,
    CallFinished,
    PoolChanged,
    emit,
)
from deepseek_client.telemetry import metrics

GIVE_UP_S = 5
ROOT = Path(__file__).parents[2]
BOUNDS_S = ["0.05", "0.1", "0.25", "0.5", "1.0", "2.0", "5.0", "10.0", "15.0", "20.0", "30.0", "60.0", "+Inf"]
_numbers = count()

# Counts three calls in two forked children, and prints what a third process, the parent, shows of them.
TWO_CHILDREN = """
import os, sys
from deepseek_client.telemetry import metrics
from deepseek_client.events import CallFinished, emit

metrics.install()
for calls in (1, 2):
    child = os.fork()
    if child == 0:
        for _ in range(calls):
            emit(CallFinished("chat", "async", 0.1, 0.2, "overloaded", {}, 0))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
sys.stdout.write(metrics.exposition()[0].decode())
"""


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Metrics are installed for the test, and the hooks of the process are as before after it."""
    monkeypatch.setattr(events, "_hooks", ())
    metrics.install()


@pytest.fixture
def method():
    """A method's name that no other test counts."""
    return f"method_{next(_numbers)}"


def call(method, error=None, *, mode="async", waited_s=0.0, ran_s=0.0):
    """One call ended."""
    emit(CallFinished(method, mode, waited_s, ran_s, error, {}, 1))


def samples(text, method):
    """The samples of one method: {(name, other labels as JSON): value}."""
    found = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            if labels.get("method") == method and not name.endswith("_created"):
                rest = {key: label for key, label in labels.items() if key != "method"}
                found[name, json.dumps(rest, sort_keys=True)] = value
    return found


def shown(method):
    """The samples of one method, as this process shows them."""
    return samples(metrics.exposition()[0].decode(), method)


def test_call_that_ended_well_is_counted(method):
    """One request of its method and mode, and no error."""
    call(method)
    values = shown(method)
    assert values["deepseek_requests_total", '{"mode": "async"}'] == 1
    assert [name for name, _ in values if "errors" in name] == []


def test_call_that_failed_is_counted_by_its_code(method):
    """A failure is a request too, and an error of its code."""
    call(method, "overloaded")
    call(method, "overloaded")
    call(method, "bad_reply")
    values = shown(method)
    assert values["deepseek_requests_total", '{"mode": "async"}'] == 3
    assert values["deepseek_errors_total", '{"code": "overloaded", "mode": "async"}'] == 2
    assert values["deepseek_errors_total", '{"code": "bad_reply", "mode": "async"}'] == 1


def test_modes_are_counted_apart(method):
    """A sync call is not an async one."""
    call(method, mode="sync")
    call(method, mode="async")
    call(method, mode="async")
    values = shown(method)
    assert values["deepseek_requests_total", '{"mode": "sync"}'] == 1
    assert values["deepseek_requests_total", '{"mode": "async"}'] == 2


def test_duration_is_queue_and_run_together(method):
    """A call of 0.3 s in the queue and 1.5 s in a worker lasted 1.8 s."""
    call(method, waited_s=0.3, ran_s=1.5)
    values = shown(method)
    assert values["deepseek_duration_seconds_count", '{"mode": "async"}'] == 1
    assert values["deepseek_duration_seconds_sum", '{"mode": "async"}'] == pytest.approx(1.8)
    assert values["deepseek_duration_seconds_bucket", '{"le": "1.0", "mode": "async"}'] == 0
    assert values["deepseek_duration_seconds_bucket", '{"le": "2.0", "mode": "async"}'] == 1


def test_buckets_reach_from_a_cached_answer_to_the_longest_deadline(method):
    """The histogram's bounds are seconds from 0.05 to 60."""
    call(method)
    for metric in ("duration", "waited"):
        names = [
            json.loads(rest) for name, rest in shown(method) if name == f"deepseek_{metric}_seconds_bucket"
        ]
        assert [labels["le"] for labels in names] == BOUNDS_S


def test_installing_twice_counts_once(method):
    """install() may be called by each app of a process."""
    metrics.install()
    call(method)
    assert shown(method)["deepseek_requests_total", '{"mode": "async"}'] == 1


def test_without_install_nothing_is_counted(monkeypatch, method):
    """The core alone counts nothing."""
    monkeypatch.setattr(events, "_hooks", ())
    call(method)
    assert shown(method) == {}


def one(name, **labels):
    """The value of one sample, whatever its method; 0 while there is none."""
    families = text_string_to_metric_families(metrics.exposition()[0].decode())
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in found if labels.items() <= sample.labels.items())


def test_attempts_are_counted_by_their_outcome():
    """Each attempt counts as ok or by its error's code."""
    before = {outcome: one("deepseek_attempts_total", outcome=outcome) for outcome in ("ok", "bad_reply")}
    for error in ("bad_reply", "bad_reply", None):
        emit(AttemptFinished("chat", error, {}))
    assert one("deepseek_attempts_total", outcome="bad_reply") == before["bad_reply"] + 2
    assert one("deepseek_attempts_total", outcome="ok") == before["ok"] + 1


@pytest.mark.parametrize(("attempts", "retries"), [(0, 0), (1, 0), (3, 2)])
def test_retries_are_attempts_after_the_first(method, attempts, retries):
    """A call that was tried three times has two retries; one that never started has none."""
    before = one("deepseek_retries_total")
    emit(CallFinished(method, "async", 0.0, 0.0, None, {}, attempts))
    assert one("deepseek_retries_total") == before + retries


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18}, {"prompt": 7, "completion": 11}),
        ({"completion_tokens_details": {"reasoning_tokens": 5}}, {"reasoning": 5}),
        ({"prompt_cache_hit_tokens": 3, "prompt_cache_miss_tokens": 4}, {"cache_hit": 3, "cache_miss": 4}),
        ({"prompt_tokens": "7", "completion_tokens": -1, "completion_tokens_details": 5}, {}),
    ],
    ids=["both", "reasoning", "cache", "nonsense"],
)
def test_tokens_are_counted_by_their_kind(usage, expected):
    """What the API counts is added up for each attempt, billed ones that failed included; nonsense is ignored."""
    kinds = ("prompt", "completion", "reasoning", "cache_hit", "cache_miss")
    before = {kind: one("deepseek_tokens_total", kind=kind) for kind in kinds}
    emit(AttemptFinished("chat", "bad_reply", usage))
    after = {kind: one("deepseek_tokens_total", kind=kind) - before[kind] for kind in kinds}
    assert after == {**dict.fromkeys(kinds, 0), **expected}


def test_the_pool_is_shown():
    """Changes of the pool add up to its counts of the moment, and to the calls that were refused."""
    names = {"workers": "deepseek_pool_workers", "busy": "deepseek_pool_busy", "queued": "deepseek_pool_queued",
             "rejected": "deepseek_pool_rejected_total"}  # fmt: skip
    before = {field: one(name) for field, name in names.items()}
    for change in ({"workers": 5, "queued": 2}, {"queued": -1, "busy": 1}, {"rejected": 1}, {"busy": -1}):
        emit(PoolChanged(**change))
    after = {field: one(name) - before[field] for field, name in names.items()}
    assert after == {"workers": 5, "busy": 0, "queued": 1, "rejected": 1}


def test_aborts_are_counted_by_their_reason():
    """A call that is ended counts under what ended it."""
    before = one("deepseek_aborted_total", reason="deadline")
    emit(CallAborted("deadline"))
    assert one("deepseek_aborted_total", reason="deadline") == before + 1


def test_open_breakers_are_counted():
    """Each breaker counts from its opening to its closing."""
    before = one("deepseek_breaker_state")
    states = []
    for state in ("open", "open", "closed", "closed"):
        emit(BreakerChanged(state))
        states.append(one("deepseek_breaker_state") - before)
    assert states == [1, 2, 1, 0]


def test_exposition_is_prometheus_text():
    """The content type names the text format's version, and every metric has its help and type."""
    body, content_type = metrics.exposition()
    assert content_type.startswith("text/plain; version=")
    for name, kind in [("requests", "counter"), ("errors", "counter"), ("duration_seconds", "histogram")]:
        full = f"deepseek_{name}" + ("_total" if kind == "counter" else "")
        assert f"# HELP {full} ".encode() in body
        assert f"# TYPE {full} {kind}\n".encode() in body


def test_processes_are_summed(tmp_path):
    """With PROMETHEUS_MULTIPROC_DIR any process shows the sum of all, those that have ended included."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", TWO_CHILDREN],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    values = samples(done.stdout, "chat")
    assert values["deepseek_requests_total", '{"mode": "async"}'] == 3
    assert values["deepseek_errors_total", '{"code": "overloaded", "mode": "async"}'] == 3
    assert values["deepseek_duration_seconds_count", '{"mode": "async"}'] == 3
    assert values["deepseek_duration_seconds_sum", '{"mode": "async"}'] == pytest.approx(0.9)


def test_a_directory_that_cannot_be_used(tmp_path):
    """When PROMETHEUS_MULTIPROC_DIR cannot be made the process counts alone, and says so."""
    (tmp_path / "file").touch()
    environment = {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "file" / "metrics"),
        "PYTHONPATH": str(ROOT),
    }
    script = TWO_CHILDREN.split("for calls")[0] + (
        'emit(CallFinished("chat", "async", 0.1, 0.2, None, {}, 1))\nprint(metrics.exposition()[0].decode())'
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=GIVE_UP_S
    )
    assert done.returncode == 0, done.stderr
    assert "PROMETHEUS_MULTIPROC_DIR cannot be used" in done.stderr
    assert samples(done.stdout, "chat")["deepseek_requests_total", '{"mode": "async"}'] == 1
