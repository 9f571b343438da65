"""How many workers a load needs: the arithmetic that the console and `deepseek-client tune` share.

Little's law: the calls that run at a time are the calls that arrive per second, times the seconds that one runs. That
is a mean. Calls that arrive independently of each other are sometimes more and sometimes fewer, in a pool that never
makes them wait by Poisson's distribution, whatever the times that they run. A pool is large enough when it has room
for what runs at a time in 99 % of all moments: the difference to the mean is the head-room.
"""

from __future__ import annotations

import math

__all__ = ["HEADROOM_SHARE", "NOTED_WAIT_SHARE", "calls_at_a_time", "enough_for"]

HEADROOM_SHARE = 0.99
"""The share of all moments in which the recommended workers suffice."""

NOTED_WAIT_SHARE = 0.1
"""A wait of this part of the time that a call runs is one that its caller notices."""

_NORMAL_FROM = 500.0  # above it Poisson's distribution is the normal one, to less than a worker in a hundred
_NORMAL_99 = 2.326


def calls_at_a_time(rate: float, ran_mean_s: float) -> float:
    """Returns how many calls run at a time on average when none has to wait: Little's law.

    Args:
        rate: calls that arrive per second.
    """
    return rate * ran_mean_s


def enough_for(mean: float, share: float = HEADROOM_SHARE) -> int:
    """Returns the smallest number, at least 1, that a count with this mean exceeds in less than 1 - `share` of cases.

    Args:
        mean: of Poisson's distribution.
        share: 0.99 alone above a mean of 500.
    """
    if mean > _NORMAL_FROM:
        return math.ceil(mean + _NORMAL_99 * math.sqrt(mean))
    number, probability = 0, math.exp(-mean)
    reached = probability
    while reached < share:
        number += 1
        probability *= mean / number
        reached += probability
    return max(1, number)
