import logging
from dataclasses import FrozenInstanceError

import pytest

from deepseek_client import events
from deepseek_client.events import CallFinished, emit, subscribe, unsubscribe

EVENT = CallFinished("chat", "async", 0.25, 1.5, None, {"total_tokens": 18}, 1)


@pytest.fixture(autouse=True)
def only_the_hooks_of_the_test(monkeypatch):
    """Nobody else listens, and afterwards everybody who did listens again."""
    monkeypatch.setattr(events, "listeners", ())


@pytest.fixture
def seen():
    """What a hook, its append, was told."""
    return []


def fail(event):
    """A hook that raises."""
    raise ZeroDivisionError("a hook's own trouble")


def test_hook_gets_each_event(seen):
    """A subscribed hook is called with the very event, once for each."""
    subscribe(seen.append)
    emit(EVENT)
    emit(EVENT)
    assert [event is EVENT for event in seen] == [True, True]


def test_hooks_are_called_in_the_order_of_subscription():
    """First come, first told."""
    order = []
    subscribe(lambda event: order.append("first"))
    subscribe(lambda event: order.append("second"))
    emit(EVENT)
    assert order == ["first", "second"]


def test_emit_without_hooks_does_nothing():
    """Nobody has to listen."""
    emit(EVENT)


def test_same_hook_twice_counts_once(seen):
    """Subscribing again changes nothing, also for a bound method, which is a new object each time."""
    subscribe(seen.append)
    subscribe(seen.append)
    emit(EVENT)
    assert seen == [EVENT]


def test_unsubscribed_hook_hears_nothing_more(seen):
    """Unsubscribing takes out this hook and no other."""
    others = []
    subscribe(seen.append)
    subscribe(others.append)
    unsubscribe(seen.append)
    emit(EVENT)
    assert (seen, others) == ([], [EVENT])


def test_unknown_hook_is_ignored(seen):
    """Unsubscribing what is not subscribed, or no longer, is no error."""
    subscribe(seen.append)
    unsubscribe(fail)
    unsubscribe(seen.append)
    unsubscribe(seen.append)


def test_hook_that_raises_is_logged_and_harms_nobody(seen, caplog):
    """Its traceback is in the log, the hooks around it are called, and emit returns."""
    before = []
    subscribe(before.append)
    subscribe(fail)
    subscribe(seen.append)
    emit(EVENT)
    assert (before, seen) == ([EVENT], [EVENT])
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("deepseek_client.events", logging.ERROR)
    assert record.exc_info[0] is ZeroDivisionError
    assert "fail" in record.getMessage()


def test_hook_that_raises_is_called_again(caplog):
    """One failure does not unsubscribe a hook."""
    subscribe(fail)
    emit(EVENT)
    emit(EVENT)
    assert len(caplog.records) == 2


def test_hooks_may_change_while_an_event_is_told(seen):
    """A hook that unsubscribes itself does not make the next one miss the event."""

    def once(event):
        unsubscribe(once)

    subscribe(once)
    subscribe(seen.append)
    emit(EVENT)
    assert seen == [EVENT]


def test_event_is_frozen():
    """Hooks share one event: none can change it for the next."""
    with pytest.raises(FrozenInstanceError):
        EVENT.error = "none"
