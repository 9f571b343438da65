"""Places: what one process holds, waits for and tells, when the server answers and when it does not."""

from __future__ import annotations

from typing import Any

import pytest
from support.blocking import Clock

from deepseek_client.account_server import Standing
from deepseek_client.calls.places import BEAT_S, Place, Places


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def places(clock: Clock) -> Places:
    return Places(12, clock=clock)


def asked(places: Places, times: int) -> list[Place]:
    made = [Place() for _ in range(times)]
    for place in made:
        places.ask(place)
    return made


def spoken(places: Places, *granted: str, limit: int = 12, processes: int = 3) -> tuple[str, dict[str, Any]]:
    """What the server is told, which it answers by these grants."""
    process, news = places.speech()
    places.heard(process, news, Standing(limit, processes, [*granted]))
    return process, news


def unheard(places: Places) -> dict[str, Any]:
    """What the server is told, and does not answer."""
    process, news = places.speech()
    places.lost(process)
    return news


def held(places: list[Place]) -> list[bool]:
    return [place.is_held for place in places]


def test_the_first_speech_joins_at_once(places):
    """A process makes itself known before it holds anything, and asks for all that waits."""
    first, second = asked(places, 2)
    assert places.seconds_to_speech() == 0
    process, news = spoken(places, first.token)
    assert (news["joins"], news["wanted"], news["taken"]) == (True, [first.token, second.token], [])
    assert places.process == process
    assert held([first, second]) == [True, False]
    assert (first.turn.is_set(), second.turn.is_set()) == (True, False)


def test_it_speaks_of_news_at_once_and_else_once_a_beat(places, clock):
    """Between two beats there is nothing to say, unless a call asks, leaves or was refused."""
    spoken(places)
    assert places.seconds_to_speech() == BEAT_S
    (place,) = asked(places, 1)
    assert places.seconds_to_speech() == 0
    assert spoken(places)[1]["wanted"] == [place.token]
    places.leave(place)
    assert spoken(places)[1]["gone"] == [place.token]
    places.refused(None)
    assert spoken(places)[1]["refused_at"] == 0
    assert places.seconds_to_speech() == BEAT_S
    clock.now += BEAT_S
    assert places.seconds_to_speech() == 0


def test_a_place_is_left_once(places):
    """Who leaves twice, or never had a place, frees nothing of another's."""
    (place,) = asked(places, 1)
    spoken(places, place.token)
    places.leave(place)
    places.leave(place)
    places.leave(Place())
    assert spoken(places)[1]["gone"] == [place.token]


def test_a_grant_to_who_has_given_up_is_given_back(places):
    """A place that is granted when its call waits no more is told as gone, and nobody takes it for held."""
    spoken(places)
    (place,) = asked(places, 1)
    process, news = places.speech()
    places.leave(place)
    places.heard(process, news, Standing(12, 3, [place.token]))
    assert not place.is_held
    assert spoken(places)[1]["gone"] == [place.token]


def test_a_grant_under_an_old_name_counts_for_nothing(places):
    """What was granted before this process joined anew, it has asked for again."""
    process, _ = spoken(places)
    (place,) = asked(places, 1)
    assert not places.lost(process)
    places.granted(process, [place.token])
    assert not place.is_held
    assert spoken(places)[1]["wanted"] == [place.token]


def test_without_a_server_each_keeps_to_its_share(places):
    """When the second speech is not answered, a process has a third of the limit, if it was one of three."""
    process, _ = spoken(places)
    waiting = asked(places, 6)
    unheard(places)
    assert (places.is_away, places.process, any(held(waiting))) == (False, None, False)
    unheard(places)
    assert places.is_away
    assert held(waiting) == [True] * 4 + [False] * 2
    places.leave(waiting[0])
    assert held(waiting) == [False, True, True, True, True, False]
    places.lost(process)
    assert places.share == 4


def test_who_was_never_told_takes_a_tenth():
    """A process that has never reached the server counts itself as one of ten, and has at least one place."""
    for limit, share in ((100, 10), (5, 1)):
        places = Places(limit)
        waiting = asked(places, 20)
        unheard(places)
        assert held(waiting).count(True) == share


def test_more_than_the_share_stays_held(places):
    """What is in flight when the server goes away goes on; only further calls wait for the share."""
    running = asked(places, 6)
    spoken(places, *(place.token for place in running))
    (late,) = asked(places, 1)
    unheard(places)
    unheard(places)
    assert held([*running, late]) == [True] * 6 + [False]
    for place in running[:3]:
        places.leave(place)
    assert held([*running, late]) == [False] * 3 + [True] * 4


def test_back_again_it_tells_what_is_really_in_flight(places):
    """It joins under a new name, in place of all that it has tried; what it took meanwhile it keeps."""
    first = spoken(places)[0]
    waiting = asked(places, 6)
    unheard(places)
    unheard(places)
    process, news = places.speech()
    places.leave(waiting[0])  # while the server is being told, the next one takes the share
    assert places.heard(process, news, Standing(12, 3, []))
    assert (len(news["replaces"]), news["replaces"][0]) == (2, first)
    assert sorted(news["taken"]) == [place.token for place in waiting[:4]]
    assert news["wanted"] == [place.token for place in waiting[4:]]
    news = spoken(places)[1]
    assert (news["gone"], news["taken"]) == ([waiting[0].token], [waiting[4].token])
    assert not news["joins"]


def test_a_long_outage_makes_no_long_message(places):
    """However often a process has tried to join, it names the last few of its names only."""
    spoken(places)
    for _ in range(100):
        news = unheard(places)
    assert len(news["replaces"]) == 5


def test_who_is_taken_for_dead_joins_again(places, clock):
    """A process that was stopped for longer than three beats tells anew what it holds."""
    (place,) = asked(places, 1)
    spoken(places, place.token)
    clock.now += 10
    process, news = places.speech()
    assert not places.heard(process, news, None)
    assert places.seconds_to_speech() == 0
    news = spoken(places)[1]
    assert (news["joins"], news["taken"]) == (True, [place.token])
    assert place.is_held


def test_it_joins_once_a_beat_whatever_breaks(places, clock):
    """Where joining works and nothing else does, the server is not stormed."""
    process, _ = spoken(places)
    places.lost(process)
    assert places.seconds_to_speech() == BEAT_S
    clock.now += BEAT_S
    assert spoken(places)[1]["joins"]


def test_an_answer_for_a_name_that_was_given_up_is_not_one(places):
    """When the listener loses the server while the other thread is being answered, the answer's grants are not used."""
    spoken(places)
    (place,) = asked(places, 1)
    process, news = places.speech()
    places.lost(process)
    places.heard(process, news, Standing(12, 3, [place.token]))
    assert (places.process, place.is_held) == (None, False)


def test_a_refusal_is_told_until_the_server_has_heard_of_it(places):
    """Of several refusals the lowest named limit counts; without a name they are a step."""
    spoken(places)
    for named in (None, 9, 7, 8, None):
        places.refused(named)
    assert unheard(places)["refused_at"] == 7
    assert unheard(places)["refused_at"] == 7
    assert spoken(places, limit=7)[1]["refused_at"] == 7
    assert spoken(places)[1]["refused_at"] is None


def test_without_a_server_a_named_limit_counts_for_the_share(places):
    """A refusal that names a limit makes the share smaller where nobody can be told."""
    spoken(places)
    unheard(places)
    unheard(places)
    places.refused(6)
    assert places.share == 2


def test_metrics_are_told_differences(places):
    """The parts of all processes add up to the limit, and those that are cut off can be counted."""
    spoken(places)
    first = places.changes()
    assert (first.limit, first.away) == (4.0, 0)
    assert places.changes() is None
    spoken(places, limit=6)
    unheard(places)
    unheard(places)
    second = places.changes()
    assert (second.limit, second.away) == (-2.0, 1)
