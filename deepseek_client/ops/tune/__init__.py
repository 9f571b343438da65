"""Finds the value of LLM_MAX_WORKERS for a load by measuring; `deepseek-client tune`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ... import ConfigError, Settings
from ...settings_file import read_env_file
from ..refusal import Refusal
from . import report
from .measure import Measured, Order, measured
from .model import counts_to_try, percentile, typical_seed, waits_s, with_headroom, workers_needed
from .observed import observe
from .workload import Latency, Workload

__all__ = ["main"]

_Sweep = tuple[str, int]  # an engine and a number of workers

_SEED = 20
_TOKENS_PER_CALL = 250  # as an estimate: the legacy client asks for at most 200, and sends some 50


def main(options: argparse.Namespace) -> int:
    """Measures a sweep and prints the table; returns the exit code.

    Args:
        options: of the command line.

    Threads: the main one.
    """
    try:
        workload = _workload(options)
        counts = options.workers or counts_to_try(workers_needed(workload), with_headroom(workload))
        sweeps = [(engine, count) for engine in options.engines for count in counts]
        if options.real:
            rows, workload = _real(options, workload, sweeps)
        else:
            rows = _rehearsed(options, workload, sweeps, is_refined=not options.workers)
    except (Refusal, ConfigError, RuntimeError) as error:
        print(f"tune: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else getattr(error, "exit_code", 1)
    rows.sort(key=lambda row: (row.engine, row.workers))
    best = report.recommended(rows, workload.latency.p50_ms)
    sentence = report.reason(best, rows, workload)
    if options.json:
        print(json.dumps(_as_object(workload, rows, best, sentence), indent=2))
    else:
        print(*report.lines(rows, best), "", sentence, sep="\n")
    return _draw(options.plot, rows, best) or int(best is None)


def _workload(options: argparse.Namespace) -> Workload:
    if options.from_metrics:
        return observe(options.from_metrics, options.watch, options.processes)
    if options.p95_ms < options.p50_ms:
        raise Refusal(f"--p95-ms {options.p95_ms:g} is less than --p50-ms {options.p50_ms:g}", exit_code=2)
    return Workload(options.rate, Latency(options.p50_ms, options.p95_ms))


def _rehearsed(
    options: argparse.Namespace, workload: Workload, sweeps: Sequence[_Sweep], *, is_refined: bool
) -> list[report.Row]:
    """Against the sandbox, whose every call takes what the profile says; the same ones for each number of workers."""
    calls = max(1, round(workload.rate * options.seconds))
    seed = typical_seed(workload, calls, workers_needed(workload))
    arrivals, durations = workload.arrivals_s(calls, seed), workload.durations_s(calls, seed)

    def row_of(engine: str, workers: int) -> report.Row:
        with _sandbox() as url:
            _script(url, durations)
            order = Order(workers, engine, arrivals, url, "sk-tune", "", 3600.0)
            return _row(measured(order), waits_s(workers, arrivals, durations))

    rows = [row_of(*sweep) for sweep in _progressing(sweeps)]
    for engine in options.engines if is_refined else ():
        while count := report.next_count(
            [row for row in rows if row.engine == engine], workload.latency.p50_ms
        ):
            rows += [row_of(*sweep) for sweep in _progressing([(engine, count)])]
    return rows


def _real(
    options: argparse.Namespace, workload: Workload, sweeps: Sequence[_Sweep]
) -> tuple[list[report.Row], Workload]:
    """Against the API, at the user's expense; also the workload with the times that the API took."""
    settings = Settings.from_env({**read_env_file(), **os.environ})
    calls = options.max_calls // len(sweeps) - 1  # one of each warms up
    if calls < 1:
        raise Refusal(
            f"--max-calls {options.max_calls} is too few for {len(sweeps)} measurements of 2 or more"
        )
    tokens = options.max_calls * _TOKENS_PER_CALL
    price = tokens / 1e6 * options.usd_per_million_tokens
    print(
        f"tune: at most {options.max_calls} calls to {settings.base_url}, some {tokens:,} tokens: about"
        f" {price:.2f} USD at {options.usd_per_million_tokens:g} USD per million",
        file=sys.stderr,
    )
    if not options.yes and not _agreed():
        raise Refusal("not agreed: nothing was sent")
    arrivals = workload.arrivals_s(calls, _SEED)
    rows, ran_ms = [], []
    for engine, workers in _progressing(sweeps):
        order = Order(
            workers, engine, arrivals, settings.base_url, settings.api_key, settings.model, settings.deadline_s
        )  # fmt: skip
        seen = measured(order)
        rows.append(_row(seen, waits_s(workers, seen.arrivals_s, seen.ran_s)))
        ran_ms += [1000 * ran_s for ran_s in seen.ran_s]
    if ran_ms:
        workload = replace(workload, latency=Latency(percentile(ran_ms, 50), percentile(ran_ms, 95)))
    return rows, workload


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _row(seen: Measured, modelled_s: Sequence[float]) -> report.Row:
    return report.Row(
        seen.engine, seen.workers, seen.calls_per_s, report.waited_p95_ms(seen.waited_s),
        report.waited_p95_ms(modelled_s), seen.failed, seen.cpu_ms, seen.memory_mb,
    )  # fmt: skip


def _progressing(sweeps: Sequence[_Sweep]) -> Iterator[_Sweep]:
    is_shown = sys.stderr.isatty()
    for number, (engine, workers) in enumerate(sweeps):
        if is_shown:
            bar = "#" * (30 * number // len(sweeps))
            text = f"\r[{bar:.<30}] {number} of {len(sweeps)}, {workers} workers, {engine} "
            print(text, end="", file=sys.stderr, flush=True)
        yield engine, workers
    if is_shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def _sandbox() -> Iterator[str]:
    """The address of a sandbox in a process of its own, which ends with this one."""
    command = [sys.executable, "-m", "deepseek_client", "sandbox", "--port", "0", "--exit-on-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        url = next((word for word in said.split() if word.startswith("http")), "")
        if not url:
            raise Refusal("the sandbox has not started: see the line above")
        try:
            yield url
        finally:
            process.terminate()


def _script(url: str, durations_s: Sequence[float]) -> None:
    latencies_ms = [0.0, *(1000 * duration for duration in durations_s)]  # the first one warms up
    replies = [{"fault": "ok", "latency_ms": latency_ms} for latency_ms in latencies_ms]
    request = urllib.request.Request(
        f"{url}/sandbox/script",
        json.dumps({"replies": replies}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request):
        pass


def _as_object(
    workload: Workload, rows: Sequence[report.Row], best: report.Row | None, sentence: str
) -> dict[str, Any]:
    return {
        "rate": workload.rate,
        "p50_ms": workload.latency.p50_ms,
        "p95_ms": workload.latency.p95_ms,
        "rows": [row._asdict() for row in rows],
        "recommended": best.workers if best else None,
        "with_headroom": with_headroom(workload),
        "engine": best.engine if best else None,
        "reason": sentence,
    }


def _draw(file: str | None, rows: Sequence[report.Row], best: report.Row | None) -> int:
    if file is None:
        return 0
    try:
        report.plot(rows, best, file)
    except ModuleNotFoundError:
        print("tune: --plot needs matplotlib: pip install matplotlib", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"tune: cannot draw into {file}: {error}", file=sys.stderr)
        return 1
    return 0
