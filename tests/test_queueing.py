"""The arithmetic that says how many workers a load needs."""

from __future__ import annotations

import math
import random

import pytest

from deepseek_client.queueing import enough_for


@pytest.mark.parametrize("mean", [0.02, 0.5, 5, 40, 499, 501, 2500])
def test_enough_is_the_quantile_of_poisson(mean):
    """The number is exceeded in at most 1 % of cases, and no smaller one would do."""

    def share_up_to(number):
        return sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(number + 1))

    number = enough_for(mean)
    spare = 1 if mean > 500 else 0  # there it is the normal distribution's
    assert share_up_to(number + spare) >= 0.99
    assert number == 1 or share_up_to(number - 1 - spare) < 0.99


def test_recommended_workers_make_almost_no_call_wait():
    """In a simulated pool of the recommended size at most one call in 40 waits, whatever the spread of their times."""
    chance = random.Random(5)
    workers = enough_for(8.0)
    free_at, now, waited = [0.0] * workers, 0.0, 0
    for _ in range(20_000):
        now += chance.expovariate(8.0)
        first = min(range(workers), key=free_at.__getitem__)
        waited += free_at[first] > now
        free_at[first] = max(now, free_at[first]) + chance.lognormvariate(-0.5, 1.0)  # 1 s on average
    assert waited / 20_000 < 0.025
