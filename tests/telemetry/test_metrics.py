"""What is counted of each event."""

import json
from itertools import count, pairwise

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.samples import call, lines_of, samples

from deepseek_client import events
from deepseek_client.events import (
    AccountChanged,
    AttemptFinished,
    BreakerChanged,
    CallAborted,
    CallFinished,
    FailureSwallowed,
    PoolChanged,
    emit,
)
from deepseek_client.telemetry import metrics

pytestmark = pytest.mark.usefixtures("counted")

BOUNDS_S = ["0.05", "0.1", "0.25", "0.5", "1.0", "2.0", "5.0", "10.0", "15.0", "20.0", "30.0", "60.0", "+Inf"]
_numbers = count()


@pytest.fixture
def method():
    """A method's name that no other test counts."""
    return f"method_{next(_numbers)}"


def shown(method):
    """The samples of one method, as this process shows them."""
    return samples(metrics.exposition()[0].decode(), method)


def text_of(metric):
    """The sum and the count of a histogram without labels, as this process shows them."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics.exposition()[0].decode())
        for sample in family.samples
        if family.name == metric and not sample.name.endswith("_bucket")
    }


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
    """The histogram's bounds are seconds from 0.05 to 60; the finer ones of the wait have those among them."""
    call(method)
    bounds = {
        metric: [
            json.loads(rest)["le"]
            for name, rest in shown(method)
            if name == f"deepseek_{metric}_seconds_bucket"
        ]
        for metric in ("duration", "waited")
    }
    assert bounds["duration"] == BOUNDS_S
    assert set(bounds["waited"]) >= set(BOUNDS_S)


def test_fine_buckets_are_within_a_tenth_of_the_truth():
    """Whatever a value is from 10 ms on, the middle of its bucket is at most a tenth away."""
    for low, high in pairwise(metrics._FINE_BUCKETS_S):
        middle = (low * high) ** 0.5
        assert middle / low <= 1.1
        assert high / middle <= 1.1


def test_time_in_a_thread_is_counted(method):
    """A call that ran 1.5 s adds them; one that never got a thread adds nothing."""
    before = text_of("deepseek_ran_seconds")
    call(method, waited_s=0.3, ran_s=1.5)
    emit(CallFinished(method, "async", 2.0, 0.0, "overloaded", {}, 0))
    after = text_of("deepseek_ran_seconds")
    assert after["deepseek_ran_seconds_count"] - before["deepseek_ran_seconds_count"] == 1
    assert after["deepseek_ran_seconds_sum"] - before["deepseek_ran_seconds_sum"] == pytest.approx(1.5)


def test_installing_twice_counts_once(method):
    """install() may be called by each app of a process."""
    metrics.install()
    call(method)
    assert shown(method)["deepseek_requests_total", '{"mode": "async"}'] == 1


def test_without_install_nothing_is_counted(monkeypatch, method):
    """The core alone counts nothing."""
    monkeypatch.setattr(events, "listeners", ())
    call(method)
    assert shown(method) == {}


def one(name, **labels):
    """The value of one sample, whatever its method; 0 while there is none."""
    families = text_string_to_metric_families(metrics.exposition()[0].decode())
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in found if labels.items() <= sample.labels.items())


def test_first_chunks_are_measured(method):
    """The time to a stream's first chunk is observed; a call that is no stream has none."""
    emit(CallFinished(method, "async", 0.0, 2.0, None, {}, 1, first_chunk_s=0.3))
    emit(CallFinished(method, "async", 0.0, 2.0, None, {}, 1))
    seen = shown(method)
    assert seen["deepseek_first_chunk_seconds_count", '{"mode": "async"}'] == 1
    assert seen["deepseek_first_chunk_seconds_sum", '{"mode": "async"}'] == 0.3


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


def test_the_accounts_limit_is_shown():
    """This process's part of the limit, whether it is cut off, and what its calls have waited for their places."""
    names = {
        "limit": "deepseek_account_limit",
        "away": "deepseek_account_away",
        "waited_s": "deepseek_account_waited_seconds_total",
    }
    before = {field: one(name) for field, name in names.items()}
    for change in ({"limit": 10.0}, {"limit": -7.5, "away": 1}, {"away": -1}, {"waited_s": 0.5}):
        emit(AccountChanged(**change))
    after = {field: one(name) - before[field] for field, name in names.items()}
    assert after == {"limit": 2.5, "away": 0, "waited_s": 0.5}


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


def test_swallowed_failures_are_counted():
    """A failure that the caller got as a blank counts by its method and code."""
    emit(FailureSwallowed("chat", "bad_reply"))
    shown = lines_of(metrics.exposition()[0])
    assert shown['deepseek_swallowed_total{code="bad_reply",method="chat"}'] == "1.0"
    assert shown['deepseek_swallowed_total{code="bad_reply",method="parse"}'] == "0.0"


def test_a_metric_that_raises_changes_no_call(monkeypatch, caplog):
    """What goes wrong while an event is counted is in the log, and whoever reported it goes on."""
    monkeypatch.setattr(metrics, "_metrics_locked", lambda: 1 / 0)
    call("chat")
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("reason", "label"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("new", "other")],
)
def test_why_the_model_ended_is_counted(reason, label):
    """Each answer is counted by its finish_reason; a word that is not known is "other"."""
    before = one("deepseek_finish_total", reason=label)
    emit(CallFinished("chat", "async", 0.1, 0.2, None, {}, 1, finish_reason=reason))
    assert one("deepseek_finish_total", reason=label) == before + 1
