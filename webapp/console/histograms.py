"""Histograms as the workers count them: differences of two moments, and quantiles of those."""

from __future__ import annotations

import functools
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

__all__ = ["EMPTY", "Histogram", "histogram_of"]


@dataclass(frozen=True)
class Histogram:
    """How many observations lie up to each bound and above the one before, and the sum of all.

    Attributes:
        bounds: in rising order, the last is infinite.
        counts: one for each bound.
        total: the sum of the observations.

    Threads: immutable.
    """

    bounds: tuple[float, ...] = ()
    counts: Sequence[float] = ()
    total: float = 0.0

    @property
    def count(self) -> float:
        """How many observations there are."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Of the observations; 0 if there are none."""
        return self.total / self.count if self.count else 0.0

    def since(self, earlier: Histogram) -> Histogram:
        """What came after an earlier moment of the same histogram."""
        if earlier.bounds != self.bounds:  # there was none yet
            return self
        counts = [max(0.0, new - old) for new, old in zip(self.counts, earlier.counts, strict=True)]
        return Histogram(self.bounds, counts, max(0.0, self.total - earlier.total))

    def quantile(self, share: float) -> float | None:
        """The observation that this share of all does not exceed; None if there is none.

        It is the middle of its bucket, by their ratio: at most the root of that away from the truth.
        """
        if not self.count:
            return None
        reached = list(accumulate(self.counts))
        place = bisect_left(reached, share * reached[-1])
        high = self.bounds[place]
        if place == 0:
            return min(high / 2, self.mean)
        low = self.bounds[place - 1]
        return low if math.isinf(high) else math.sqrt(low * high)


EMPTY: Final = Histogram()
"""One that nobody has counted in."""


def histogram_of(buckets: Iterable[tuple[str, float]], total: float) -> Histogram:
    """Returns the histogram of these buckets, each with its bound in Prometheus' writing; a bound may come again.

    Args:
        buckets: bounds and counts, in any order; each count is of the bucket alone.
    """
    counts: dict[str, float] = {}
    for bound, count in buckets:
        counts[bound] = counts.get(bound, 0.0) + count
    words = tuple(sorted(counts, key=float))
    # Six hundred of these are kept: the bounds once, the counts as plain doubles.
    return Histogram(_bounds(words), array("d", [counts[word] for word in words]), total)


@functools.lru_cache(maxsize=64)
def _bounds(words: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(map(float, words))
