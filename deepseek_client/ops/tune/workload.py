"""The load of a measurement: when calls arrive, and how long the model takes for each."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

__all__ = ["Latency", "Workload"]

_P95_SIGMAS = 1.6448536269514722  # the 95th percentile of the normal distribution


@dataclass(frozen=True)
class Latency:
    """How long the model takes: a lognormal distribution, which model latencies resemble.

    Args:
        p50_ms: the median.
        p95_ms: the 95th percentile, at least the median.

    Threads: immutable.
    """

    p50_ms: float
    p95_ms: float

    @property
    def sigma(self) -> float:
        """The standard deviation of the logarithm."""
        return math.log(self.p95_ms / self.p50_ms) / _P95_SIGMAS

    @property
    def mean_ms(self) -> float:
        """The arithmetic mean, which a few slow calls pull up."""
        return self.p50_ms * math.exp(self.sigma**2 / 2)


@dataclass(frozen=True)
class Workload:
    """Calls that arrive at random, independently of each other, as the requests of many users do.

    Args:
        rate: calls that arrive per second, in one process.
        latency: of the model.

    Threads: immutable.
    """

    rate: float
    latency: Latency

    def arrivals_s(self, calls: int, seed: int) -> list[float]:
        """Returns the moments of arrival, from 0 on; the same for the same seed."""
        dice = random.Random(seed)
        moments, now = [], 0.0
        for _ in range(calls):
            now += dice.expovariate(self.rate)
            moments.append(now)
        return moments

    def durations_s(self, calls: int, seed: int) -> list[float]:
        """Returns how long the model takes for each call; the same for the same seed."""
        dice = random.Random(f"durations {seed}")
        mu = math.log(self.latency.p50_ms / 1000)
        return [dice.lognormvariate(mu, self.latency.sigma) for _ in range(calls)]
