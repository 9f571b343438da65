"""What the processes of a server count, as numbers: for a process that only looks, once a second and cheaply."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from prometheus_client.mmap_dict import MmapedDict

from . import metric_files

__all__ = ["Process", "Reading", "Series", "read_metrics"]

_LOCKS = Path("/proc/locks")
_GAUGES = "gauge_livesum_"
_READ_TIMES = 5


class Series(NamedTuple):
    """Names one number: the sample's name, and its labels in the order of their names."""

    name: str
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Process:
    """What one living process says about the present.

    Attributes:
        pid: the process; 0 where the system does not tell.
        gauges: by name, those without labels.
    """

    pid: int
    gauges: dict[str, float]


@dataclass(frozen=True)
class Reading:
    """What a server has counted until now.

    Attributes:
        totals: counters and parts of histograms, summed over all processes there have been. A histogram's bucket
            counts its own observations, not those of the buckets below it.
        processes: those that live and have set a gauge.
    """

    totals: dict[Series, float]
    processes: tuple[Process, ...]


def read_metrics(directories: Iterable[Path]) -> Reading:
    """Reads the files of servers; changes nothing, and opens no lock.

    Args:
        directories: what `metric_directory.directory()` is in a process of each server. One that is gone has nothing.

    Threads: any.
    """
    totals: dict[Series, float] = {}
    processes: list[Process] = []
    holders = _lock_holders()
    for directory in directories:
        for file, values in _values_in(directory):
            kind, _, number = file.stem.rpartition("_")
            if not f"{kind}_".startswith("gauge_"):
                for key, value in values:
                    series = _series_of(key)
                    totals[series] = totals.get(series, 0.0) + value
            elif file.name.startswith(_GAUGES) and (pid := _owner(directory, number, holders)) is not None:
                gauges = {_series_of(key).name: value for key, value in values}
                processes.append(Process(pid, gauges))
    return Reading(totals, tuple(sorted(processes, key=lambda process: process.pid)))


def _values_in(directory: Path) -> list[tuple[Path, list[tuple[str, float]]]]:
    """Each file of the directory with its keys and numbers; [] if the directory is gone."""
    for attempt in range(_READ_TIMES):
        # Another process may remove a file, or be about to write its first key.
        with contextlib.suppress(*metric_files.UNUSABLE):
            files = metric_files.files_in(directory)
            if attempt == _READ_TIMES - 1:
                files = [file for file in files if metric_files.is_whole(file)]
            return [(Path(file), list(_numbers_in(file))) for file in files]
    return []


def _numbers_in(file: str) -> Iterator[tuple[str, float]]:
    for key, value, *_ in MmapedDict.read_all_values_from_file(file):
        yield key, value


@functools.lru_cache(maxsize=10_000)
def _series_of(key: str) -> Series:
    _, name, labels, _ = json.loads(key)
    return Series(name, tuple(sorted(labels.items())))


def _owner(directory: Path, number: str, holders: dict[int, int] | None) -> int | None:
    """The process that has this number: 0 if nobody can tell, None if it has ended."""
    if holders is None:
        return 0
    try:
        return holders.get((directory / f"{number}.lock").stat().st_ino)
    except OSError:
        return None


def _lock_holders() -> dict[int, int] | None:
    """Who holds which lock, by the inode of its file; None on a system that does not tell.

    The locks themselves are not opened: in a process that holds one, closing it would give it up.
    """
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return None
    # 1: POSIX  ADVISORY  WRITE 19630 fe:00:2859073 0 EOF
    entries = [line.split() for line in lines]
    return {
        int(words[5].rpartition(":")[2]): int(words[4])
        for words in entries
        if words[1] == "POSIX" and words[3] == "WRITE"
    }
