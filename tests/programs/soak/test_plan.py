import itertools

import pytest

from .plan import plan_of

BREAKER_S = 10


@pytest.mark.parametrize(
    ("minutes", "first_s", "count"),
    [(0.1, 2, 2), (0.25, 5, 2), (0.5, 10, 4), (1, 10, 7), (2, 10, 7), (15, 10, 16), (1440, 10, 1441)],
)
def test_stretches(minutes, first_s, count):
    """The first rest is after 10 s, or a third of a shorter run; the last one at the end; others between, in order."""
    ends_s = [stretch.ends_s for stretch in plan_of(minutes)]
    assert (ends_s[0], len(ends_s), ends_s[-1]) == (first_s, count, pytest.approx(minutes * 60))
    assert ends_s == sorted(ends_s)


def test_longest_stretch_is_a_minute():
    """However long a run is, there is a rest each minute."""
    ends_s = [stretch.ends_s for stretch in plan_of(600)]
    assert max(late - early for early, late in itertools.pairwise(ends_s)) <= 61


@pytest.mark.parametrize("minutes", [2, 5, 60])
def test_outages(minutes):
    """There are outages, and after each the stretch goes on until the breaker has closed; none is in the first."""
    plan = plan_of(minutes)
    broken = [stretch for stretch in plan if stretch.down_s is not None]
    assert broken
    assert plan[0] not in broken
    assert all(stretch.up_s + BREAKER_S <= stretch.ends_s for stretch in broken)
    assert all(stretch.down_s < stretch.up_s for stretch in broken)


def test_short_run_has_no_outage():
    """A breaker that is open for 10 s would leave nothing of it."""
    assert [stretch for stretch in plan_of(0.5) if stretch.down_s is not None] == []


@pytest.mark.parametrize("minutes", [0.1, 2, 60])
def test_full_disk(minutes):
    """The disk fills and empties within each stretch but the first, in a short run, too."""
    first, *others = plan_of(minutes)
    assert first.full_s is None
    assert not first.is_full(1.0)
    began_s = first.ends_s
    for stretch in others:
        assert began_s < stretch.full_s < stretch.free_s < stretch.ends_s
        moments = (began_s, stretch.full_s, stretch.free_s)
        assert [stretch.is_full(moment) for moment in moments] == [False, True, False]
        began_s = stretch.ends_s
