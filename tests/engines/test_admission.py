"""Admission: who runs, who waits, who is refused, and what is told of it. The clock is a number."""

from __future__ import annotations

import pytest
from support.blocking import Clock

from deepseek_client import DeadlineExceeded, Overloaded
from deepseek_client.engines.admission import Admission, Ticket


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def admission(clock):
    return Admission(workers=2, queue_limit=3, clock=clock)


def admitted(admission: Admission, deadline: float | None = None) -> Ticket:
    """One that has a slot or a place in the queue."""
    ticket = Ticket(deadline)
    assert admission.admit(ticket) is (ticket.state == "granted")
    return ticket


def running(admission: Admission, deadline: float | None = None) -> Ticket:
    ticket = admitted(admission, deadline)
    admission.begin(ticket)
    return ticket


def ran(admission: Admission, clock: Clock, seconds: float, times: int = 10) -> None:
    """Calls that end one after the other, each after so many seconds."""
    for _ in range(times):
        ticket = running(admission)
        clock.now += seconds
        admission.end(ticket)


def busy(admission: Admission, queued: int = 0) -> list[Ticket]:
    """Every slot is taken by a running call, and so many wait."""
    tickets = [running(admission) for _ in range(admission.workers)]
    return tickets + [admitted(admission) for _ in range(queued)]


def refused(admission: Admission, deadline: float | None = None) -> Overloaded:
    before = admission.rejected
    ticket = Ticket(deadline)
    with pytest.raises(Overloaded) as caught:
        admission.admit(ticket)
    assert ticket.state == "new"
    assert admission.rejected == before + 1
    return caught.value


def counts(admission: Admission) -> tuple[int, int]:
    return admission.running, admission.queued


@pytest.mark.parametrize(("workers", "queue_limit"), [(0, 0), (-1, 5), (1, -1)])
def test_it_needs_workers(workers, queue_limit):
    """No worker, or a negative queue, is refused by name and value."""
    with pytest.raises(ValueError, match=f"workers={workers}, queue_limit={queue_limit}"):
        Admission(workers, queue_limit)


def test_two_numbers_bound_it(admission):
    """Two run, three wait, and one more is refused."""
    tickets = busy(admission, queued=3)
    assert [ticket.state for ticket in tickets] == ["running"] * 2 + ["queued"] * 3
    assert str(refused(admission)) == "All 2 workers are busy and 3 calls wait already."
    assert counts(admission) == (2, 3)


def test_without_a_queue_nobody_waits(clock):
    """With queue_limit=0 a call that finds no slot is refused."""
    admission = Admission(workers=1, queue_limit=0, clock=clock)
    running(admission)
    refused(admission)
    assert counts(admission) == (1, 0)


def test_first_in_first_out(admission):
    """A slot that becomes free goes to the one that has waited longest, before anybody who comes now."""
    first, second, *waiting = busy(admission, queued=3)
    assert admission.end(second) is waiting[0]
    late = admitted(admission)
    assert admission.end(first) is waiting[1]
    assert [ticket.state for ticket in [*waiting, late]] == ["granted", "granted", "queued", "queued"]
    assert counts(admission) == (2, 2)


def test_who_leaves_the_queue_gives_no_slot(admission):
    """A call that is given up in the queue is removed, and nobody gets a slot by that."""
    first, _, gone, waiting = busy(admission, queued=2)
    assert not admission.give_up(gone)
    assert admission.end(gone) is None
    assert counts(admission) == (2, 1)
    assert admission.end(first) is waiting


def test_who_leaves_before_it_runs_gives_its_slot(admission):
    """A call that is given up between its slot and its thread frees the slot for the next one."""
    first, _, gone, waiting = busy(admission, queued=2)
    assert admission.end(first) is gone
    assert not admission.give_up(gone)
    assert admission.end(gone) is waiting


def test_a_running_call_keeps_its_slot(admission):
    """The slot belongs to what runs: giving it up, once or twice, frees nothing before its end."""
    first, _, waiting = busy(admission, queued=1)
    assert admission.give_up(first)
    assert admission.give_up(first)
    assert counts(admission) == (2, 1)
    assert admission.end(first) is waiting


def test_an_end_counts_once(admission):
    """A call that has ended, or was never admitted, frees nothing at a further end."""
    ticket = running(admission)
    for one in (ticket, ticket, Ticket(None)):
        assert admission.end(one) is None
    assert counts(admission) == (0, 0)


def test_a_call_whose_time_is_over_is_not_begun(admission, clock):
    """A call whose deadline has passed when its thread is there does not run, and its slot is free after its end."""
    ticket = admitted(admission, deadline=clock.now + 5.0)
    clock.now += 5.0
    with pytest.raises(DeadlineExceeded, match="before it was started"):
        admission.begin(ticket)
    admission.end(ticket)
    assert counts(admission) == (0, 0)


def test_a_call_inside_of_another_takes_no_slot(admission):
    """A call that uses the slot of the call around it neither takes one nor gives one to who waits."""
    busy(admission, queued=1)
    inner = Ticket(None)
    inner.slots, inner.state = 0, "granted"
    admission.begin(inner)
    assert admission.end(inner) is None
    assert counts(admission) == (2, 1)


def test_retry_after_is_the_time_that_the_queue_needs(admission, clock):
    """With calls of 6 s on two workers, three that wait and one more are done in four times 3 s."""
    ran(admission, clock, 6.0)
    busy(admission, queued=3)
    assert refused(admission).retry_after_s == 12.0


@pytest.mark.parametrize(("times", "later_s"), [(9, 0.0), (10, 60.0)], ids=["too-few", "too-old"])
def test_a_pace_that_is_not_known(admission, clock, times, later_s):
    """Fewer than ten calls, or calls of a minute ago, say nothing: no Retry-After, and nobody is refused for it."""
    ran(admission, clock, 6.0, times)
    clock.now += later_s
    busy(admission, queued=2)
    assert admitted(admission, deadline=clock.now + 1.0).state == "queued"
    assert refused(admission).retry_after_s is None


def test_the_pace_is_that_of_the_last_ten(admission, clock):
    """Calls of an hour each no longer count after ten short ones."""
    ran(admission, clock, 3_600.0)
    ran(admission, clock, 2.0)
    busy(admission, queued=3)
    assert refused(admission).retry_after_s == 4.0


def test_a_call_that_would_be_late_is_refused(admission, clock):
    """A call that by the pace of the last ones would end after its deadline is refused on arrival, with reason."""
    ran(admission, clock, 6.0)
    busy(admission, queued=1)
    refusal = refused(admission, deadline=clock.now + 11.9)
    assert "would not end in time after 1 that wait" in str(refusal)
    assert refusal.retry_after_s == 6.0
    assert admitted(admission, deadline=clock.now + 12.0).state == "queued"


def test_a_call_that_was_cut_short_is_not_quick(admission, clock):
    """What was given up after a moment would have run at least as long as the others: the pace does not rise."""
    ran(admission, clock, 6.0)
    for _ in range(10):
        ticket = running(admission)
        admission.give_up(ticket)
        admission.end(ticket)
    busy(admission, queued=3)
    assert refused(admission).retry_after_s == 12.0


def test_a_worker_that_is_about_to_be_free_counts_as_free(admission, clock):
    """A call that takes the place of two that were given up is not refused, although their threads still end."""
    ran(admission, clock, 6.0)
    given_up = busy(admission)
    for ticket in given_up:
        admission.give_up(ticket)
        admission.give_up(ticket)
    deadline = clock.now + 6.5
    followers = [admitted(admission, deadline) for _ in range(2)]
    refused(admission, deadline)
    assert [admission.end(ticket) for ticket in given_up] == followers
    refused(admission, deadline=clock.now + 6.5)  # nobody is about to leave any more


def test_calls_inside_of_others_are_not_of_the_pace(admission, clock):
    """What a call runs in its own worker's place is part of its time, not a call more."""
    for _ in range(10):
        outer, inner = running(admission), Ticket(None)
        inner.slots, inner.state = 0, "granted"
        admission.begin(inner)
        clock.now += 6.0
        admission.end(inner)
        inner = Ticket(None)
        inner.slots, inner.state = 0, "granted"
        admission.begin(inner)
        admission.give_up(inner)
        admission.end(inner)
        admission.end(outer)
    busy(admission, queued=3)
    assert refused(admission).retry_after_s == 12.0


def test_an_idle_worker_takes_a_call_without_asking_the_pace(admission, clock):
    """While a worker is free no call is refused for its short deadline."""
    ran(admission, clock, 6.0)
    running(admission)
    assert admitted(admission, deadline=clock.now + 5.9).state == "granted"


# What is told of the waits.


def waited(admission: Admission, clock: Clock, *seconds: float) -> None:
    """Calls wait so many seconds for a slot, one after the other, and have ended."""
    tickets = busy(admission)
    for wait_s in seconds:
        waiting = admitted(admission)
        clock.now += wait_s
        assert admission.end(tickets.pop(0)) is waiting
        tickets.append(waiting)
    for ticket in tickets:
        admission.end(ticket)


def test_nothing_is_told_of_calls_that_did_not_wait(admission, clock):
    """Calls that found a slot, or waited for less than anybody notices, are not worth a line."""
    ran(admission, clock, 6.0)
    assert admission.waits_to_tell() is None
    waited(admission, clock, 0.04, 0.04)
    assert admission.waits_to_tell() is None


def test_waits_are_told_when_the_queue_is_empty(admission, clock):
    """When nobody waits any more, the number of waits and the longest of them are told, once."""
    waited(admission, clock, 3.0, 7.0, 5.0)
    assert admission.waits_to_tell() == (3, 7.0)
    assert admission.waits_to_tell() is None


def test_waits_are_told_once_a_minute(admission, clock):
    """What waits within a minute of the last line is told after that minute, together."""
    waited(admission, clock, 1.0)
    assert admission.waits_to_tell() == (1, 1.0)
    waited(admission, clock, 20.0, 39.75)
    assert admission.waits_to_tell() is None
    waited(admission, clock, 0.25)
    assert admission.waits_to_tell() == (3, 39.75)


def test_a_queue_that_never_empties_is_told_after_a_minute(admission, clock):
    """While calls still wait nothing is told for a minute after the first of them got its slot, and then it is."""
    first, second, *_ = busy(admission, queued=3)
    clock.now += 2.0
    admission.end(first)
    clock.now += 59.9
    assert admission.waits_to_tell() is None
    clock.now += 0.2
    assert admission.waits_to_tell() == (1, 2.0)
    admission.end(second)
    assert admission.waits_to_tell() is None  # within the next minute
