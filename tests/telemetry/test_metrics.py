import json
import os
import subprocess
import sys
from itertools import count, pairwise, product
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepseek_client import errors, events
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

GIVE_UP_S = 30
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


def python(script, *arguments, **environment):
    """What a new interpreter did, which says what it leaves open."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )


@pytest.fixture(autouse=True)
def counted(monkeypatch, tmp_path):
    """New metrics are installed for the test, and what the process had is as before after it."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(events, "listeners", ())
    monkeypatch.setattr(metrics, "_of_process", None)
    metrics.install()
    yield
    metrics._close()


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


def test_exposition_is_prometheus_text():
    """The content type names the text format's version, and every metric has its help and type."""
    body, content_type = metrics.exposition()
    assert content_type.startswith("text/plain; version=")
    for name, kind in [("requests", "counter"), ("errors", "counter"), ("duration_seconds", "histogram")]:
        full = f"deepseek_{name}" + ("_total" if kind == "counter" else "")
        assert f"# HELP {full} ".encode() in body
        assert f"# TYPE {full} {kind}\n".encode() in body


def test_processes_are_summed():
    """Any process shows the sum of all, those that have ended included; each closes what it has opened."""
    done = python(TWO_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    values = samples(done.stdout, "chat")
    assert values["deepseek_requests_total", '{"mode": "async"}'] == 3
    assert values["deepseek_errors_total", '{"code": "overloaded", "mode": "async"}'] == 3
    assert values["deepseek_duration_seconds_count", '{"mode": "async"}'] == 3
    assert values["deepseek_duration_seconds_sum", '{"mode": "async"}'] == pytest.approx(0.9)


def lines_of(text):
    """Each sample's line: {name and labels: value}."""
    return dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))


def test_what_can_be_known_is_shown_at_zero():
    """Before the first call rate() has a start for each method, mode, code, outcome, reason and kind of token."""
    shown = lines_of(metrics.exposition()[0])
    assert set(shown.values()) == {"0.0"}
    codes = {kind.code for kind in errors.DeepSeekError.__subclasses__()} | {"cancelled", "unexpected"}
    expected = {
        'deepseek_attempts_total{outcome="ok"}',
        "deepseek_retries_total",
        "deepseek_pool_rejected_total",
    }
    expected |= {f"deepseek_pool_{name}" for name in ("workers", "busy", "queued")} | {
        "deepseek_breaker_state"
    }
    expected |= {f"deepseek_account_{name}" for name in ("limit", "away", "waited_seconds_total")}
    expected |= {f'deepseek_attempts_total{{outcome="{code}"}}' for code in codes}
    expected |= {
        f'deepseek_aborted_total{{reason="{name}"}}' for name in ("deadline", "cancelled", "closing")
    }
    expected |= {f'deepseek_tokens_total{{kind="{kind}"}}' for kind in metrics._TOKENS}
    for method, mode in product(("chat", "parse"), ("async", "sync")):
        labels = f'method="{method}",mode="{mode}"'
        expected |= {f"deepseek_requests_total{{{labels}}}", f"deepseek_duration_seconds_count{{{labels}}}"}
        expected |= {f'deepseek_errors_total{{code="{code}",{labels}}}' for code in codes}
        expected |= {f'deepseek_swallowed_total{{code="{code}",method="{method}"}}' for code in codes}
    assert expected - set(shown) == set()


def test_the_first_count_changes_nothing_else():
    """A first error is a 1 where a 0 was, and no other series comes or goes."""
    before = lines_of(metrics.exposition()[0])
    call("chat", "bad_reply")
    after = lines_of(metrics.exposition()[0])
    assert set(after) == set(before)
    assert after['deepseek_errors_total{code="bad_reply",method="chat",mode="async"}'] == "1.0"
    assert after['deepseek_errors_total{code="bad_reply",method="parse",mode="async"}'] == "0.0"


def test_text_and_files_stay_small(tmp_path):
    """A scrape is under 40 kB before HTTP, and a process keeps three files of four blocks each."""
    call("chat")
    emit(PoolChanged(workers=5))
    assert len(metrics.exposition()[0]) < 40_000
    files = [file for file in (tmp_path / "deepseek").iterdir() if file.suffix == ".db"]
    assert [file.stat().st_size for file in files] == [16384] * 3


def test_swallowed_failures_are_counted():
    """A failure that the caller got as a blank counts by its method and code."""
    emit(FailureSwallowed("chat", "bad_reply"))
    shown = lines_of(metrics.exposition()[0])
    assert shown['deepseek_swallowed_total{code="bad_reply",method="chat"}'] == "1.0"
    assert shown['deepseek_swallowed_total{code="bad_reply",method="parse"}'] == "0.0"


def test_a_process_that_counts_nothing_shows_those_that_do(tmp_path):
    """exposition_of() says what a server's own process says, and takes no number in its directory."""
    call("chat", "bad_reply", waited_s=1.5)
    emit(PoolChanged(workers=5))
    files = sorted(os.listdir(tmp_path / "deepseek"))
    script = (
        "import sys; from pathlib import Path; from deepseek_client.telemetry.metrics import exposition_of\n"
        "sys.stdout.buffer.write(exposition_of(Path(sys.argv[1]))[0])"
    )
    shown = python(script, str(tmp_path / "deepseek"))
    assert lines_of(shown.stdout.encode()) == lines_of(metrics.exposition()[0])
    assert lines_of(metrics.exposition_of(tmp_path / "deepseek")[0]) == lines_of(metrics.exposition()[0])
    assert sorted(os.listdir(tmp_path / "deepseek")) == files
    call("chat")
    assert lines_of(metrics.exposition()[0])['deepseek_requests_total{method="chat",mode="async"}'] == "2.0"


def test_a_directory_without_metrics_shows_zeros(tmp_path):
    """exposition_of() a server that has not counted yet, or whose directory is gone, shows what is known at 0."""
    for name in ("deepseek", "gone"):
        shown = lines_of(metrics.exposition_of(tmp_path / name)[0])
        assert set(shown.values()) == {"0.0"}


# The application's own metrics beside ours, in either order: prints both.
BESIDE = """
import os, sys
from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest, multiprocess, values
from deepseek_client.events import CallFinished, emit

def application():
    global theirs
    theirs = Counter("orders_total", "Orders.", ["shop"])

def ours():
    from deepseek_client.telemetry import metrics
    metrics.install()
    emit(CallFinished("chat", "async", 0.1, 0.2, None, {}, 1))

kind, known = values.ValueClass, set(REGISTRY._names_to_collectors)
for step in sys.argv[1].split(): globals()[step]()
theirs.labels("a").inc()
assert values.ValueClass is kind
assert set(REGISTRY._names_to_collectors) - known == {"orders", "orders_total", "orders_created"}
registry = CollectorRegistry()
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    multiprocess.MultiProcessCollector(registry)
else:
    registry = REGISTRY
from deepseek_client.telemetry import metrics
print(generate_latest(registry).decode(), "# ours", metrics.exposition()[0].decode())
"""


@pytest.mark.parametrize("several", [False, True], ids=["alone", "multiprocess"])
@pytest.mark.parametrize("order", ["application ours", "ours application"])
def test_the_application_s_own_metrics_are_left_alone(monkeypatch, tmp_path, order, several):
    """Neither shows the other's, whichever is first: default registry, value class and files stay the application's."""
    if not several:
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    done = python(BESIDE, order, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    theirs, _, ours = done.stdout.partition("# ours")
    assert 'orders_total{shop="a"} 1.0' in theirs
    assert "deepseek" not in theirs
    assert "http_requests_total" not in theirs
    assert 'deepseek_requests_total{method="chat",mode="async"} 1.0' in ours
    assert "orders" not in ours


def test_install_makes_nothing(tmp_path):
    """Neither the import nor install() makes a directory or a file: the first count does."""
    python("from deepseek_client.telemetry import metrics; metrics.install()")
    assert os.listdir(tmp_path) == []


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
