"""The table of a sweep, and the number that it recommends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ...queueing import NOTED_WAIT_SHARE, calls_at_a_time
from .model import percentile, with_headroom
from .workload import Workload

__all__ = ["Row", "lines", "next_count", "plot", "reason", "recommended", "waited_p95_ms"]

_HEADINGS = ("engine", "workers", "calls/s", "waited p95", "model", "failed", "CPU/call", "memory")


class Row(NamedTuple):
    """One number of workers, as it was measured.

    Attributes:
        modelled_p95_ms: what queueing theory says of the same arrivals and durations.
    """

    engine: str
    workers: int
    calls_per_s: float
    waited_p95_ms: float
    modelled_p95_ms: float
    failed: int
    cpu_ms: float
    memory_mb: float

    def is_accepted(self, p50_ms: float) -> bool:
        """Whether all calls were answered, and users would not notice that they waited."""
        return not self.failed and self.waited_p95_ms < NOTED_WAIT_SHARE * p50_ms


def waited_p95_ms(waited_s: Sequence[float]) -> float:
    """The percentile in milliseconds; infinity when nothing was answered."""
    return 1000 * percentile(waited_s, 95) if waited_s else math.inf


def recommended(rows: Iterable[Row], p50_ms: float) -> Row | None:
    """Returns the accepted row with the fewest workers, and of those the one with the least CPU; None without one."""
    accepted = [row for row in rows if row.is_accepted(p50_ms)]
    return min(accepted, key=lambda row: (row.workers, row.cpu_ms), default=None)


def next_count(rows: Iterable[Row], p50_ms: float) -> int | None:
    """Returns the number halfway between too few workers and enough; None if they are neighbours or none is enough."""
    rows = list(rows)
    best = recommended(rows, p50_ms)
    if best is None:
        return None
    too_few = max((row.workers for row in rows if row.workers < best.workers), default=0)
    middle = (too_few + best.workers) // 2
    return middle if too_few < middle else None


def reason(best: Row | None, rows: Sequence[Row], workload: Workload) -> str:
    """The recommendation and its reason, in a sentence or two."""
    accepted_ms = NOTED_WAIT_SHARE * workload.latency.p50_ms
    load = f"{workload.rate:.3g} calls per second that take {workload.latency.mean_ms:.0f} ms on average"
    if best is None:
        most = max(rows, key=lambda row: row.workers)
        modelled = [row.workers for row in rows if row.modelled_p95_ms < accepted_ms]
        remedy = "Add processes, or look at the CPU."
        if modelled:
            remedy = f"By the model {min(modelled)} are enough: this machine was too busy to measure it."
        return (
            f"None of these is enough for {load}: with {most.workers} workers the 95th percentile of waiting is"
            f" {most.waited_p95_ms:.0f} ms, and {accepted_ms:.0f} ms are accepted. {remedy}"
        )
    busy = calls_at_a_time(workload.rate, workload.latency.mean_ms / 1000)
    smaller = [row for row in rows if row.workers < best.workers]
    than = ""
    if smaller:
        nearest = max(smaller, key=lambda row: row.workers)
        than = f"; with {nearest.workers} it is {nearest.waited_p95_ms:.0f} ms"
    return (
        f"LLM_MAX_WORKERS={best.workers}: {load} keep {busy:.1f} workers busy, and with {best.workers} the 95th"
        f" percentile of waiting is {best.waited_p95_ms:.0f} ms, less than a tenth of the model's median of"
        f" {workload.latency.p50_ms:.0f} ms{than}. The console's rule, room for 99 % of all"
        f" moments, gives {with_headroom(workload)}."
    )


def lines(rows: Iterable[Row], best: Row | None) -> list[str]:
    """The table; the recommended row is marked."""
    cells = [_HEADINGS, *(_cells(row) for row in rows)]
    marks = ["", *("  <- recommended" if row == best else "" for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + mark
        for line, mark in zip(cells, marks, strict=True)
    ]


def plot(rows: Sequence[Row], best: Row | None, file: str) -> None:
    """Draws waiting over workers into a PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    for engine in sorted({row.engine for row in rows}):
        of_engine = sorted((row for row in rows if row.engine == engine), key=lambda row: row.workers)
        workers = [row.workers for row in of_engine]
        axes.plot(workers, [row.waited_p95_ms for row in of_engine], marker="o", label=f"measured, {engine}")
        axes.plot(
            workers, [row.modelled_p95_ms for row in of_engine], linestyle="--", label=f"model, {engine}"
        )
    if best is not None:
        axes.axvline(best.workers, color="tab:green", label=f"recommended: {best.workers}")
    axes.set(xlabel="LLM_MAX_WORKERS", ylabel="waited, 95th percentile (ms)", yscale="symlog")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(file, dpi=120)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        *(row.engine, str(row.workers), f"{row.calls_per_s:.1f}", f"{row.waited_p95_ms:.1f} ms"),
        *(
            f"{row.modelled_p95_ms:.1f} ms",
            str(row.failed),
            f"{row.cpu_ms:.2f} ms",
            f"{row.memory_mb:.0f} MB",
        ),
    )
