"""What the doctor finds in the deployment's directory, asked in a process of its own and at most once a minute."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Findings"]

_GOOD_FOR_S = 60.0
_DOCTOR_S = 30.0


class Findings:
    """The doctor's findings, remembered for a minute.

    Args:
        clock: `time.monotonic`, or a test's.

    Threads: any; one asks, others wait for its answer.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until = 0.0  # guarded by _lock
        self._found: list[dict[str, str]] | None = None  # guarded by _lock

    def get(self) -> list[dict[str, str]] | None:
        """Returns each finding's level, what, why and remedy; None if the doctor cannot say."""
        with self._lock:
            if self._clock() >= self._until:
                self._found = _ask()
                self._until = self._clock() + _GOOD_FOR_S
            return self._found


def _ask() -> list[dict[str, str]] | None:
    command = [sys.executable, "-m", "deepseek_client", "doctor", "--json"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_DOCTOR_S)
        found: Any = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return [{name: str(each[name]) for name in ("level", "what", "why", "remedy")} for each in found]
