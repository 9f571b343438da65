"""The run as a Markdown table and as JSON."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .soaking import Moment, Rest
from .verdict import Row, seen_from_bytes

__all__ = ["content_of", "text_of"]


def text_of(
    rows: Sequence[Row], rests: Sequence[Rest], outcomes: Counter[str], details: Sequence[str]
) -> str:
    """The table, what came of the requests, and from where on a leak would have been seen; then the details."""
    lines = [
        f"| figure | after {rests[0].elapsed_s:.0f} s | at the end | allowed | |",
        "|---|---:|---:|---:|---|",
    ]
    lines += [f"| {' | '.join(row[:4])} | {'ok' if row.is_fine else 'NOT'} |" for row in rows]
    counts = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
    lines += ["", f"{rests[-1].sent} requests: {counts}."]
    lines += [f"A leak of more than {seen_from_bytes(rests):.0f} bytes a request would have been seen."]
    return "\n".join([*lines, *details])


def content_of(
    rows: Sequence[Row],
    rests: Sequence[Rest],
    moments: Sequence[Moment],
    outcomes: Counter[str],
    details: Sequence[str],
) -> dict[str, Any]:
    """The same, and every look, for --json."""
    return {
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "is_fine": all(row.is_fine for row in rows),
        "figures": [row._asdict() for row in rows],
        "outcomes": outcomes,
        "details": list(details),
        "rests": [_plain(rest) for rest in rests],
        "moments": [_plain(moment) for moment in moments],
    }


def _plain(seen: Rest | Moment) -> dict[str, Any]:
    return {**seen._asdict(), "sample": seen.sample._asdict()}
