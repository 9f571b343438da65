"""The API that fails: the sandbox, over HTTPS as the real one."""

from __future__ import annotations

import http.client
import os
import random
import select
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trustme

from . import faults
from .processes import SoakError, ask, end, start

__all__ = ["Upstream", "running_upstream"]

_START_S = 30
_STOP_S = 5
_OPTIONS = ["--port", "0", "--exit-on-eof", "--latency-ms", "20", "--latency-sigma", "0.5"]
_FEWEST_SCRIPTED = 500
_SCRIPTED_AT_ONCE = 500


class Upstream:
    """The running sandbox.

    Threads: only one at a time.
    """

    def __init__(self, url: str, bundle: Path, seed: int) -> None:
        self.url = url
        self.bundle = bundle
        self.port = int(url.rpartition(":")[2])
        self._trust = ssl.create_default_context(cafile=str(bundle))
        self._rng = random.Random(f"faults {seed}")
        self._outages = 0

    def feed(self) -> None:
        """Sees to it that there are faults in the script for a while."""
        if self.stats()["scripted"] < _FEWEST_SCRIPTED:
            self.script(faults.mixed(self._rng, _SCRIPTED_AT_ONCE))

    def break_down(self) -> None:
        """From now on every request fails, until `recover`."""
        self._ask("DELETE", "/sandbox/script")
        self.script(faults.outage(self._outages))
        self._outages += 1

    def recover(self) -> None:
        """From now on there is the usual mix."""
        self._ask("DELETE", "/sandbox/script")
        self.feed()

    def prepare(self, replies: list[dict[str, Any]]) -> None:
        """Counts from zero and forgets the script, but for these replies."""
        self._ask("POST", "/sandbox/reset")
        self.script(replies)

    def script(self, replies: list[dict[str, Any]]) -> None:
        """Queues replies."""
        answer = self._ask("POST", "/sandbox/script", {"replies": replies})
        if "scripted" not in answer:
            raise SoakError(f"the sandbox refused the script: {answer}")

    def stats(self) -> dict[str, Any]:
        """What it saw."""
        stats: dict[str, Any] = self._ask("GET", "/sandbox/stats")
        return stats

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        try:
            return ask(f"127.0.0.1:{self.port}", method, path, body, self._trust)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise SoakError(f"the sandbox does not answer: {exc}") from exc


@contextmanager
def running_upstream(folder: Path, seed: int) -> Iterator[Upstream]:
    """The sandbox until the end of the block; its certificate and the bundle to verify it by are in the folder.

    It ends at the end of its standard input, so when this process is gone, however it went.

    Raises:
        SoakError: it did not start.
    """
    authority = trustme.CA()
    certificate, bundle = folder / "sandbox.pem", folder / "bundle.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    authority.cert_pem.write_to_path(str(bundle))
    process = start(
        [sys.executable, "-m", "deepseek_client.sandbox", *_OPTIONS, "--certfile", str(certificate)],
        {},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it tells of each client that goes in the middle of a reply
    )
    try:
        banner = _first_line(process)
        if not banner.startswith("sandbox: http"):
            raise SoakError(f"the sandbox did not start within {_START_S} s")
        yield Upstream(banner.split()[1], bundle, seed)
    finally:
        end(process, _STOP_S)


def _first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout
    output, text, give_up = process.stdout.fileno(), b"", time.monotonic() + _START_S
    while b"\n" not in text and select.select([output], [], [], max(0, give_up - time.monotonic()))[0]:
        chunk = os.read(output, 4096)
        if not chunk:
            break
        text += chunk
    return text.decode(errors="replace").partition("\n")[0]
