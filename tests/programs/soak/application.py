"""The application as it is deployed: gunicorn, one gthread worker."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from .disk import Disk
from .plan import DEADLINE_S, QUEUE_LIMIT, THREADS, WORKERS
from .processes import ROOT, SoakError, ask, end, start
from .upstream import Upstream

__all__ = ["Application", "Log", "running_application"]

_START_S = 30
_TRACEBACK_LINES = 60
_FINISH_S = 5
_STOP_S = DEADLINE_S + 8  # gunicorn lets calls in flight finish first


class Application:
    """The running server; `log` is what it wrote.

    Threads: only one at a time.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        assert process.stdout
        self.address = f"127.0.0.1:{port}"
        self.log = Log(process.stdout)
        self._process = process

    def status(self) -> dict[str, Any] | None:
        """What /api/llm/status answers; None when it does not, for all its threads may be busy."""
        try:
            status: dict[str, Any] = ask(self.address, "GET", "/api/llm/status")
        except (OSError, http.client.HTTPException, ValueError):
            return None
        return status

    def wait_until_it_serves(self) -> None:
        """Blocks until it answers.

        Raises:
            SoakError: it ended instead, or took too long.
        """
        give_up = time.monotonic() + _START_S
        while self.status() is None:
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise SoakError(f"the application did not start: {self.log.last()}")
            time.sleep(0.05)

    def end(self) -> int:
        """Ends it as an operator does, with SIGTERM; its exit code."""
        code = end(self._process, _STOP_S)
        self.log.finish()
        return code


class Log:
    """Reads what a process writes for as long as it writes, and keeps the little that may be asked for.

    Attributes:
        tracebacks: how many there were.
        first_traceback: the lines of the first.

    Threads: a thread of its own reads; the rest is for any other.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.tracebacks = 0
        self.first_traceback: list[str] = []
        self._last: deque[str] = deque(maxlen=10)
        self._thread = threading.Thread(target=self._read, args=(stream,), name="soak-log", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits until all is read that a process wrote which has ended."""
        self._thread.join(_FINISH_S)

    def last(self) -> str:
        """The last line that is not blank."""
        return next((line.strip() for line in reversed(self._last) if line.strip()), "it wrote nothing")

    def _read(self, stream: IO[bytes]) -> None:
        is_in_first = False
        for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            self._last.append(line)
            if line.startswith("Traceback ("):
                self.tracebacks += 1
                is_in_first = self.tracebacks == 1
            if is_in_first:
                self.first_traceback.append(line)
                is_in_first = (
                    line.startswith(("Traceback (", " ")) and len(self.first_traceback) < _TRACEBACK_LINES
                )


@contextmanager
def running_application(upstream: Upstream, disk: Disk) -> Iterator[Application]:
    """The server once it answers, until the end of the block.

    The kernel ends gunicorn's master when this process is gone (soak.tethered), and gunicorn.conf.py has it end the
    workers when the master is.

    Raises:
        SoakError: it did not start.
    """
    port = _free_port()
    gunicorn = ["-m", "gunicorn", "-c", str(ROOT / "webapp" / "gunicorn.conf.py"), "webapp.wsgi:app"]
    process = start(
        [sys.executable, "-m", "soak.tethered", str(os.getpid()), sys.executable, *gunicorn],
        {
            **_SETTINGS,
            "PORT": str(port),
            "DEEPSEEK_BASE_URL": upstream.url,
            "REQUESTS_CA_BUNDLE": str(upstream.bundle),
            "PROMETHEUS_MULTIPROC_DIR": str(disk.path),
            "DEEPSEEK_RUN_DIR": str(disk.path / "run"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    application = Application(process, port)
    try:
        application.wait_until_it_serves()
        yield application
    finally:
        application.end()


_SETTINGS = {
    "HOST": "127.0.0.1",
    "WEB_CONCURRENCY": "1",
    "WEB_THREADS": str(THREADS),
    "LLM_MAX_WORKERS": str(WORKERS),
    "LLM_QUEUE_LIMIT": str(QUEUE_LIMIT),
    "LLM_DEADLINE_S": str(DEADLINE_S),
    "DEEPSEEK_API_KEY": "sk-soak",
    # What is measured is what the process holds, not what glibc keeps for it: by default that is up to 16 heaps on two
    # cores, each as large as its largest moment, and they took 8 minutes to fill.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
