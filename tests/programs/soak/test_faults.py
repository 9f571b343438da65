import random
from collections import Counter

import pytest

from deepseek_client.sandbox.script import FAULT_NAMES, read_script

from . import faults

COUNT = 5000


def mixed(seed="x", count=COUNT):
    """The replies of a seed."""
    return faults.mixed(random.Random(seed), count)


def test_mix_has_every_fault():
    """Each fault that the sandbox knows comes, also one that is added later."""
    assert {reply["fault"] for reply in mixed()} == set(FAULT_NAMES) - {*faults.NOT_FOR_HERE}


def test_mix_is_mostly_ok():
    """About seven of ten replies are good ones, so that the breaker stays closed."""
    share = Counter(reply["fault"] for reply in mixed())["ok"] / COUNT
    assert share == pytest.approx(1 - faults.FAULT_SHARE, abs=0.03)


def test_sandbox_takes_the_scripts():
    """The sandbox understands every reply."""
    outages = [reply for number in range(8) for reply in faults.outage(number)]
    assert read_script({"replies": [*mixed(), *outages, *faults.warm_up(16, 300)]})


def test_seed():
    """The same seed gives the same replies, another one gives others."""
    assert mixed("a", 100) == mixed("a", 100) != mixed("b", 100)


def test_account_is_never_refused():
    """No 401 and no 402, after which the breaker would refuse everything for 5 minutes."""
    assert {reply.get("status") for reply in mixed()} & {401, 402, 403} == set()
