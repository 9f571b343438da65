"""Looks at the workers once a second and keeps ten minutes of it; no worker takes part in that."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deepseek_client.telemetry.metric_directory import directories_of
from deepseek_client.telemetry.metric_reading import read_metrics
from deepseek_client.telemetry.testimony import Testimony, process_state, read_testimonies

from .listening import waiting_connections
from .sample import Sample, sample_of
from .windows import POINT, point_of

__all__ = ["KEPT_S", "Kept", "Server", "Watch"]

KEPT_S = 600
"""How long samples are kept."""

_EVERY_S = 1.0
_GAP_S = 3.0  # more between two samples is a gap in the charts
_LOOKED_BACK = 15  # samples that a point is made of
_logger = logging.getLogger(__name__)


class Server:
    """Where the numbers of a server are found: by what its processes have testified in a directory.

    Args:
        run_directory: where the testimonies are.
        port: where its gunicorn listens; 0 if that is not known.
        master: only the processes of this one count while it lives; 0 for all that have testified.

    Threads: any.
    """

    def __init__(self, run_directory: Path, port: int = 0, master: int = 0) -> None:
        self._run_directory = run_directory
        self._port = port
        self._master = master

    def directories(self) -> list[Path]:
        """Returns where the metrics are now."""
        return directories_of(testimony.pid for testimony in self._testimonies())

    def look(self, at: float) -> Sample:
        """Returns what the processes have counted until now.

        Args:
            at: the moment, in seconds since 1970.
        """
        testimonies = self._testimonies()
        directories = directories_of(testimony.pid for testimony in testimonies)
        backlog = waiting_connections(self._port) if self._port else None
        names = tuple(map(os.fspath, directories))
        return sample_of(at, names, read_metrics(directories), testimonies, backlog)

    def _testimonies(self) -> list[Testimony]:
        try:
            found = read_testimonies(self._run_directory)
        except OSError:
            return []
        if self._master and process_state(self._master) is not None:
            return [testimony for testimony in found if self._master in (testimony.master, testimony.pid)]
        return found


class Kept(NamedTuple):
    """One sample that is kept.

    Attributes:
        number: counts up from 1.
        point: what the charts show of it, as JSON.
    """

    number: int
    sample: Sample
    point: str


class Watch:
    """The last ten minutes, sampled by a thread of its own.

    Args:
        look: gives a sample of now.
        clock: `time.time`, or a test's.

    Threads: any.
    """

    def __init__(self, look: Callable[[float], Sample], clock: Callable[[], float] = time.time) -> None:
        self._look = look
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: deque[Kept] = deque(maxlen=KEPT_S)  # guarded by _lock
        self._number = 0  # guarded by _lock
        self._is_failing = False
        self._watcher = 0  # the process whose thread samples; guarded by _lock

    def start(self) -> None:
        """Begins to sample; idempotent, and right in a forked child, too."""
        with self._lock:
            if self._watcher == os.getpid():
                return
            self._watcher = os.getpid()
        threading.Thread(target=self._watch, name="console-watch", daemon=True).start()

    def sample(self) -> None:
        """Takes one sample; if that fails it is missing, and the log says so once."""
        at = self._clock()
        try:
            sample = self._look(at)
        except Exception:  # the thread's edge: the next look may succeed
            if not self._is_failing:
                _logger.exception("the workers cannot be looked at")
            self._is_failing = True
            return
        self._is_failing = False
        with self._lock:
            if self._kept and at - self._kept[-1].sample.at > _GAP_S:
                self._keep(Sample(at - _EVERY_S))
            self._keep(sample)

    def since(self, number: int) -> list[Kept]:
        """Returns what is kept after this number, the oldest first; all if the number is not of this watch."""
        with self._lock:
            if not 0 <= number <= self._number:
                number = 0
            return [kept for kept in self._kept if kept.number > number]

    def _keep(self, sample: Sample) -> None:
        self._number += 1
        recent = [kept.sample for kept in list(self._kept)[-_LOOKED_BACK:]]
        values = point_of([*recent, sample])
        assert len(values) == len(POINT)
        self._kept.append(Kept(self._number, sample, json.dumps(values, separators=(",", ":"))))

    def _watch(self) -> None:
        next_at = time.monotonic()
        while True:
            self.sample()
            now = time.monotonic()
            next_at = max(next_at + _EVERY_S, now)
            time.sleep(next_at - now)
