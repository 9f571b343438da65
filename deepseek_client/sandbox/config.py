"""The sandbox's settings as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..settings import is_loopback

__all__ = ["SandboxConfig"]


@dataclass(frozen=True)
class SandboxConfig:
    """What a sandbox listens on and how the API behind it behaves.

    Args:
        host: loopback only; the sandbox answers anyone, so nobody from outside may reach it.
        port: 0 takes any free port.
        latency_ms: how long a completion takes; with `latency_sigma` the median.
        latency_sigma: 0 is a constant latency; above 0 the latency is lognormal with this sigma.
        concurrency: completion requests that may be in flight; one more is refused with 429.
        api_key: "" accepts any key that is not empty.
        certfile: PEM file of the certificate; "" serves plain HTTP.
        keyfile: PEM file of its private key; "" when the key is in `certfile`.
        keep_alive_s: idle time after which the server closes a connection.
        blank_line_every_s: a reply that takes longer than this drips a blank line that often while it waits;
            a shorter one is sent in one piece.

    Raises:
        ValueError: one line that names the setting, its value and what is needed; nothing was started.

    Threads: frozen; any thread may read it.
    Source: the default of `concurrency` is the account's limit for deepseek-flash.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    latency_ms: float = 100.0
    latency_sigma: float = 0.0
    concurrency: int = 2500
    api_key: str = field(default="", repr=False)
    certfile: str = ""
    keyfile: str = ""
    keep_alive_s: float = 75.0
    blank_line_every_s: float = 5.0

    def __post_init__(self) -> None:
        if not is_loopback(self.host):
            raise ValueError(
                f"host={self.host!r}: need a loopback address such as 127.0.0.1, ::1 or localhost"
            )
        _check("port", self.port, 0 <= self.port <= 65535, "a whole number from 0 to 65535")
        _check("latency_ms", self.latency_ms, 0 <= self.latency_ms < math.inf, "a number of at least 0")
        _check("latency_sigma", self.latency_sigma, 0 <= self.latency_sigma <= 10, "a number from 0 to 10")
        _check("concurrency", self.concurrency, self.concurrency >= 1, "a whole number of at least 1")
        _check("keep_alive_s", self.keep_alive_s, 0 < self.keep_alive_s < math.inf, "a number above 0")
        _check("blank_line_every_s", self.blank_line_every_s, self.blank_line_every_s > 0, "a number above 0")
        _check("keyfile", self.keyfile, bool(self.certfile or not self.keyfile), "certfile beside it")

    @property
    def scheme(self) -> str:
        """The URL's: https with a certificate, http without."""
        return "https" if self.certfile else "http"


def _check(name: str, value: object, fits: bool, need: str) -> None:
    if not fits:
        raise ValueError(f"{name}={value!r}: need {need}")
