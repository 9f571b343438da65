"""Counters, gauges and histograms of our own, in files that all processes of a server can read.

prometheus_client decides once for the whole process, in a global that belongs to the application, where metrics keep
their values. Here only its file format, its sums and its text are used.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.utils import floatToGoString

from .metric_directory import directory
from .metric_files import UNUSABLE, OwnFiles, ValueFile

__all__ = ["Family", "Values"]

_LOOK_EVERY_S = 60.0
_logger = logging.getLogger(__name__)


class _Series:
    """The numbers of one set of labels: in a file, or in memory only as long as they have none."""

    def __init__(self, kind: str, size: int) -> None:
        self.kind = kind
        self.keys: list[str] = []  # given with the first count
        self._totals = [0.0] * size
        self._file: ValueFile | None = None

    def in_memory(self) -> list[float]:
        """What no file has."""
        return self._totals if self._file is None else [0.0] * len(self._totals)

    def add(self, index: int, amount: float) -> None:
        self._totals[index] += amount
        if self._file is not None:
            self._file.set(self.keys[index], self._totals[index])

    def move_to(self, file: ValueFile) -> None:
        """Goes on where the last owner of the file has ended. Raises OSError if there is no room."""
        found = [file.get(key) for key in self.keys]
        self._file = file
        for index, amount in enumerate(found):
            self.add(index, amount)

    def leave_file(self) -> None:
        # A process that takes the number counts on in a file that is still there; of gauges it removes the file.
        if self._file is not None and self._file.is_in_place() and self.kind != "gauge_livesum":
            self._totals = [0.0] * len(self._totals)
        self._file = None


class Values:
    """The numbers that this process counts, kept in files where that is possible.

    Where it is not (a full disk, no directory) the process counts alone, in memory, says so once, and looks once a
    minute whether it can move into files.

    Args:
        inherited: the directory that the parent of a forked process used; None to find it at the first count.
        clock: `time.monotonic`, or a test's.

    Attributes:
        directory: where the files are; None before the first count, and where there is no place for them.
        files: those of this process; None as long as it has none.
        is_alone: whether the last look found no room.

    Threads: one at a time.
    """

    def __init__(self, inherited: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory = inherited
        self.files: OwnFiles | None = None
        self._clock = clock
        self._look_at = clock()
        self.is_alone = False
        self._counted: list[_Series] = []
        self._without_file: list[_Series] = []

    def keep(self, series: _Series) -> None:
        """Keeps what has its first count; one that is still at 0 needs no room."""
        self._counted.append(series)
        self._without_file.append(series)

    def settle(self, *, look: bool = False) -> None:
        """Moves new numbers into their files, and now and then looks whether all is in place. Never raises.

        Args:
            look: look also if the minute is not over, unless the last look found no room.
        """
        now = self._clock()
        if now < self._look_at and (self.is_alone or not (self._without_file or look)):
            return
        self._look_at = now + _LOOK_EVERY_S
        try:
            self._move_into_files()
        except UNUSABLE as error:
            if not self.is_alone:
                _logger.warning("metrics: this process counts alone until it has room in files (%s)", error)
            self.is_alone = True
        else:
            if self.is_alone:
                _logger.warning("metrics: this process has room again, and nothing it counted is lost")
            self.is_alone = False

    def close(self) -> None:
        """Closes the files; what was counted stays in them, and what is counted later is lost."""
        self._leave_files()
        self._look_at = math.inf
        self.is_alone = True

    def _move_into_files(self) -> None:
        if self.files is not None and not self.files.are_in_place():
            self._leave_files()
        if self.files is None:
            if self.directory is None or not self.directory.is_dir():
                self.directory = directory()
            self.files = OwnFiles(self.directory)
        while self._without_file:
            series = self._without_file[-1]
            series.move_to(self.files.file(series.kind))
            self._without_file.pop()

    def _leave_files(self) -> None:
        if self.files is not None:
            for series in self._counted:
                series.leave_file()
            self._without_file = self._counted.copy()
            self.files.close()
            self.files = None


class Family:
    """One metric with all its sets of labels.

    Args:
        kind: "counter", "gauge" (summed over the processes that live) or "histogram".
        name: that of a counter ends with _total.
        text: what it counts.
        labels: the names of its labels.
        bounds: a histogram's upper bounds but the last, +Inf.

    Threads: one at a time.
    """

    def __init__(
        self,
        values: Values,
        kind: str,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        bounds: Sequence[float] = (),
    ) -> None:
        self.kind = kind
        self.name = name.removesuffix("_total")
        self.labels = tuple(labels)
        self._values = values
        self._text = text
        self._bounds = tuple(bounds)
        self._samples = _samples_of(kind, self.name, self._bounds)
        self._series: dict[tuple[str, ...], _Series] = {}

    def add(self, *labels: str, amount: float = 1) -> None:
        """Adds to the counter or gauge with these labels."""
        self._of(labels).add(0, amount)

    def observe(self, amount: float, *labels: str) -> None:
        """Counts one observation in the histogram with these labels."""
        series = self._of(labels)
        series.add(bisect_left(self._bounds, amount), 1)
        series.add(len(self._bounds) + 1, amount)

    def expose(self, *labels: str) -> None:
        """Shows 0 for these labels before their first count."""
        kind = "gauge_livesum" if self.kind == "gauge" else self.kind
        self._series[labels] = _Series(kind, len(self._samples))

    def in_memory(self) -> Metric:
        """What is in no file, for prometheus_client's text; each set of labels at least with 0."""
        metric = Metric(self.name, self._text, self.kind)
        for labels, series in self._series.items():
            named = dict(zip(self.labels, labels, strict=True))
            so_far = 0.0
            for (name, more), amount in zip(self._samples, series.in_memory(), strict=True):
                so_far += amount
                # A bucket holds those below it, too.
                metric.add_sample(name, {**named, **more}, so_far if more else amount)
                if more.get("le") == "+Inf":
                    metric.add_sample(f"{self.name}_count", named, so_far)
        return metric

    def _of(self, labels: tuple[str, ...]) -> _Series:
        if labels not in self._series:
            self.expose(*labels)
        series = self._series[labels]
        if not series.keys:
            series.keys = [
                mmap_key(self.name, name, [*self.labels, *more], [*labels, *more.values()], "")
                for name, more in self._samples
            ]
            self._values.keep(series)
        return series


def _samples_of(kind: str, name: str, bounds: Sequence[float]) -> list[tuple[str, dict[str, str]]]:
    """The numbers of one set of labels: each one's name, and the labels that it has beside those."""
    if kind == "histogram":
        buckets = [(f"{name}_bucket", {"le": floatToGoString(bound)}) for bound in (*bounds, float("inf"))]
        return [*buckets, (f"{name}_sum", {})]
    return [(f"{name}_total" if kind == "counter" else name, {})]
