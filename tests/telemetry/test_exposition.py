"""What a process shows: the sum of all processes, what can be known at zero, and nothing of the application's own."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from support.patience import GIVE_UP_S
from support.samples import call, lines_of, samples

from deepseek_client import errors
from deepseek_client.events import PoolChanged, emit
from deepseek_client.telemetry import metrics

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("counted")

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
