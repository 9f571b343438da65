"""How far a run is: one line that is written anew on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TextIO

from .answers import group_of
from .soaking import Moment

__all__ = ["Progress", "clock"]

_LINES = 12  # of a run, where they stay
_MOST_S = 60.0
_CLEAR = "\r\x1b[K"


class Progress:
    """Writes what it is shown to the stream.

    Threads: only one at a time.
    """

    def __init__(self, stream: TextIO, total_s: float) -> None:
        self._stream = stream
        self._total_s = total_s
        self._is_terminal = stream.isatty()
        self._every_s = min(_MOST_S, total_s / _LINES)
        self._next_s = 0.0

    def show(self, moment: Moment) -> None:
        """Writes the moment's line, if it is time for one."""
        line = f"soak: {clock(moment.elapsed_s)} of {clock(self._total_s)} {_text(moment)}"
        if self._is_terminal:
            width = shutil.get_terminal_size().columns
            self._stream.write(_CLEAR + line[: width - 1])
        elif moment.elapsed_s >= self._next_s:
            self._next_s = moment.elapsed_s + self._every_s
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Takes the line away from a terminal."""
        if self._is_terminal:
            self._stream.write(_CLEAR)
            self._stream.flush()


def clock(seconds: float) -> str:
    """1:05, or 2:00:00."""
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"


def _text(moment: Moment) -> str:
    sample = moment.sample
    slots = "-" if moment.slots is None else "{} busy + {} queued".format(*moment.slots)
    groups: Counter[str] = Counter()
    for outcome, count in moment.outcomes.items():
        groups[group_of(outcome)] += count
    counts = ", ".join(f"{count} {group}" for group, count in groups.most_common())
    return (
        f"{moment.doing}: {sample.threads} threads, {sample.descriptors}+{sample.connections} descriptors, "
        f"{sample.memory_bytes / 1024 / 1024:.1f} MiB, slots {slots}; {moment.sent} requests: {counts}"
    )
