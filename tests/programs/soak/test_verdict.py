from collections import Counter

import pytest

from .soaking import Rest
from .verdict import MEMORY_BYTES, judge, seen_from_bytes
from .worker import Sample

MIB = 1024 * 1024
REQUESTS = 17_000
"""Of the default run on the machine that it was made on."""

CREEP_MIB = (40.3, 41.4, 42.0, 42.6, 42.6, 42.7, 42.9)
"""What a run without a leak had at its rests."""

NONE = Sample(0, 0, 0, 0)
OUTCOMES = Counter(ok=12_000, bad_reply=3_000, hung_up=1_500, invalid_request=500)


def rests_of(requests=REQUESTS, *, per_request=NONE, slots=(0,) * 7, in_flight=(0,) * 7, pids=(7,) * 7):
    """The rests of a run that leaks `per_request`."""
    rests = []
    for place, memory_mib in enumerate(CREEP_MIB):
        sent = int(requests * (place + 0.7) / 6.7)
        healthy = Sample(27, 21, (place * 5) % 16, int(memory_mib * MIB))
        sample = Sample(*(int(base + sent * leak) for base, leak in zip(healthy, per_request, strict=True)))
        rests.append(Rest(10.0 + 18 * place, sent, 0, pids[place], slots[place], in_flight[place], sample))
    return rests


def complaints(rests, outcomes=OUTCOMES, tracebacks=0, exit_code=0):
    """The figures that are not as they must be, by their first word or two."""
    rows = judge(rests, outcomes, tracebacks, exit_code)
    return [" ".join(row.figure.split()[:2]).strip(",") for row in rows if not row.is_fine]


def test_run_without_a_leak():
    """Caches that fill, and connections that are kept now and not then, are no leak."""
    assert complaints(rests_of()) == []


@pytest.mark.parametrize(
    ("leak", "complaint"),
    [
        pytest.param(Sample(1, 0, 0, 0), ["threads"], id="thread"),
        pytest.param(Sample(0, 1, 0, 0), ["descriptors, upstream"], id="descriptor"),
        pytest.param(Sample(0, 0, 1, 0), ["upstream connections"], id="connection"),
        pytest.param(Sample(0, 0, 0, 1024), ["memory, MiB", "memory growth"], id="memory"),
        pytest.param(
            Sample(0, 0.01, 0, 0), ["descriptors, upstream"], id="descriptor_of_one_request_in_a_hundred"
        ),
        pytest.param(
            Sample(0, 0, 0.01, 0), ["upstream connections"], id="connection_of_one_request_in_a_hundred"
        ),
    ],
)
def test_leak_of_each_request(leak, complaint):
    """A thread, a descriptor, a connection or one KiB that each request leaves behind is seen in the default run."""
    assert complaints(rests_of(per_request=leak)) == complaint


@pytest.mark.parametrize("requests", [5_000, 9_500_000], ids=["slow_machine", "day"])
def test_leak_of_a_kib_in_runs_of_other_lengths(requests):
    """One KiB is seen also where the machine does a third of the requests, and over a whole day."""
    assert "memory growth" in complaints(rests_of(requests, per_request=Sample(0, 0, 0, 1024)))


def test_small_leak_over_a_day():
    """What a run may grow by does not grow with the run: a day shows two bytes for each request."""
    assert complaints(rests_of(9_500_000, per_request=Sample(0, 0, 0, 2))) == ["memory, MiB"]
    assert seen_from_bytes(rests_of(9_500_000)) < 2


def test_one_odd_rest_is_no_growth():
    """Garbage that was not yet collected at one rest does not count as growth."""
    rests = rests_of()
    sample = rests[4].sample
    rests[4] = rests[4]._replace(sample=sample._replace(memory_bytes=sample.memory_bytes + 4 * MIB))
    assert complaints(rests) == []


def test_short_run_says_nothing_about_growth():
    """Two rests are no trend; what such a run can see is said."""
    rests = [rests_of()[0], rests_of()[-1]]
    assert [row for row in judge(rests, OUTCOMES, 0, 0) if "growth" in row.figure] == []
    assert seen_from_bytes(rests) == pytest.approx(MEMORY_BYTES / (rests[1].sent - rests[0].sent))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param({"slots": (0, 0, 1, 0, 0, 0, 0)}, "slots taken", id="slot_held_at_some_rest"),
        pytest.param({"slots": (0, 0, 0, 0, 0, 0, -1)}, "slots taken", id="slots_not_told"),
        pytest.param({"in_flight": (0, 0, 0, 0, 0, 0, 2)}, "requests in", id="request_still_open_upstream"),
        pytest.param({"pids": (7, 7, 8, 8, 8, 8, 8)}, "worker process", id="restart"),
    ],
)
def test_what_must_be_at_every_rest(change, complaint):
    """No slot is taken, nothing goes on upstream, and it is the same process."""
    assert complaints(rests_of(**change)) == [complaint]


def test_requests():
    """A request without an outcome, an answer that is none, too few good ones, a traceback and a bad end are seen."""
    assert complaints([*rests_of()[:-1], rests_of()[-1]._replace(unanswered=1)]) == ["requests sent"]
    assert complaints(rests_of(), OUTCOMES + Counter(WRONG=1)) == ["answers that"]
    assert complaints(rests_of(), Counter(ok=100, circuit_open=16_900)) == ["requests answered"]
    assert complaints(rests_of(), tracebacks=1) == ["tracebacks in"]
    assert complaints(rests_of(), exit_code=-9) == ["exit code"]
