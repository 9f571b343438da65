"""The fan-out curve as a picture."""

from __future__ import annotations

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .figures import Figures
from .plan import LATENCY_MS

__all__ = ["draw"]

_LABELS = {"legacy executor": "legacy, ThreadPoolExecutor", "legacy to_thread": "legacy, asyncio.to_thread"}
_MARKS = "osD^v<>Xp"


def draw(figures: Figures, path: str) -> None:
    """Calls per second over the number of calls under way, each peer a line, with the ideal and the spread.

    Raises:
        OSError: the file cannot be written.
    """
    picture = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    widths = figures.widths("b")
    axes.plot(widths, [width / LATENCY_MS * 1000 for width in widths], "k--", label="ideal, W / latency")
    for peer, mark in zip(_fastest_first(figures), itertools.cycle(_MARKS), strict=False):
        points = [(width, figures.of("calls_per_s", "b", peer, width)) for width in widths]
        known = [(width, spread) for width, spread in points if spread]
        medians = [spread.median for _, spread in known]
        errors = [
            [spread.median - spread.low for _, spread in known],
            [spread.high - spread.median for _, spread in known],
        ]
        axes.errorbar(
            [width for width, _ in known],
            medians,
            yerr=errors,
            label=_LABELS.get(peer, peer),
            marker=mark,
            capsize=3,
            linewidth=3 if peer == "ours" else 1.5,
            zorder=3 if peer == "ours" else 2,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(widths, [str(width) for width in widths])
    ticks = [20, 50, 100, 200, 500, 1000, 2000]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("calls under way in one process (W)", fontsize=12)
    axes.set_ylabel("calls per second", fontsize=12)
    axes.set_title(
        f"6 x W prompts over HTTPS, {LATENCY_MS} ms latency; median of the rounds, bars from least to most"
    )
    axes.legend(fontsize=11)
    picture.savefig(path, dpi=120)


def _fastest_first(figures: Figures) -> list[str]:
    def best(peer: str) -> float:
        spreads = [figures.of("calls_per_s", "b", peer, width) for width in figures.widths("b")]
        return max((spread.median for spread in spreads if spread), default=0)

    return sorted(figures.peers("b"), key=best, reverse=True)
