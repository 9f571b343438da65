"""Real gunicorns of a test's own directory; their application testifies as one with DeepSeek(app) does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepseek_client.telemetry.testimony import read_testimonies

from .patience import GIVE_UP_S

ROOT = Path(__file__).parents[2]
APPLICATION = """\
import os
from deepseek_client.settings import Settings
from deepseek_client.settings_file import read_env_file
from deepseek_client.telemetry.testimony import testify

settings = Settings.from_env({**read_env_file(), **os.environ})
testify(is_async=settings.use_async, engine="threads")

def app(environ, start_response):
    start_response("200 OK", [])
    return [b""]
"""


def poll(fact: Callable[[], Any]) -> Any:
    """The answer of a function, once it is true; for processes that cannot tell us by themselves."""
    ends_at = time.monotonic() + GIVE_UP_S
    while not (answer := fact()):
        assert time.monotonic() < ends_at, f"not true within {GIVE_UP_S} s"
        time.sleep(0.02)
    return answer


class Gunicorn:
    """A gunicorn that serves `app:app` of a directory on a unix socket there."""

    def __init__(
        self,
        root: Path,
        *options: str,
        workers: int = 1,
        command: tuple[str, ...] = (sys.executable, "-m", "gunicorn"),
        directory: Path | None = None,
        cwd: Path | None = None,
        **env: str,
    ) -> None:
        self._directory = directory or root / ".deepseek"
        self.log = root.parent / f"{root.name}.log"
        if not (root / "app.py").exists():
            (root / "app.py").write_text(APPLICATION)
        socket = f"unix:{root}/{len(list(root.iterdir()))}.sock"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *options, "-w", str(workers), "-b", socket, "app:app"],
                cwd=cwd or root,
                env=environment(root, **env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self.process.pid
        self._wanted = workers

    def wait_until_up(self) -> None:
        """Waits until all workers have testified."""
        poll(lambda: len(self.workers()) == self._wanted or self._has_ended())

    def testimonies(self) -> list[Any]:
        """What the processes of the directory have said."""
        return read_testimonies(self._directory)

    def workers(self) -> set[int]:
        """The workers that have testified."""
        return {said.pid for said in self.testimonies() if said.master == self.pid}

    def end(self) -> None:
        """Ends it and its workers."""
        workers = self.workers()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(GIVE_UP_S)
            except subprocess.TimeoutExpired:
                for pid in (self.pid, *workers):
                    os.kill(pid, signal.SIGKILL)
                raise

    def _has_ended(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return False


def environment(root: Path, **env: str) -> dict[str, str]:
    """The variables of a process in a deployment: nothing of the machine's settings, and a home of its own."""
    return {"PATH": os.environ["PATH"], "HOME": str(root.parent), "PYTHONPATH": str(ROOT), **env}
