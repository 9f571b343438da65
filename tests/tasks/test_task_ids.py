"""Ids that prove themselves."""

import re

import pytest

from deepseek_client.tasks.ids import is_genuine, new_id

KEY, OTHER = b"k" * 32, b"o" * 32


def test_id_is_fit_for_an_address():
    """32 lower-case letters and digits."""
    assert re.fullmatch("[a-z2-7]{32}", new_id(KEY))


def test_ids_differ():
    """A thousand of one second are a thousand."""
    assert len({new_id(KEY) for _ in range(1000)}) == 1000


def test_id_is_proved_by_its_key():
    """Any process that has the key knows the id for a real one; another key makes none of it."""
    made = new_id(KEY)
    assert is_genuine(KEY, made)
    assert not is_genuine(OTHER, made)


@pytest.mark.parametrize("change", range(0, 32, 3))
def test_changed_id_is_none(change):
    """Each character counts."""
    made = new_id(KEY)
    other = "b" if made[change] == "a" else "a"
    assert not is_genuine(KEY, made[:change] + other + made[change + 1 :])


@pytest.mark.parametrize(
    "text", ["", "x", "a" * 32, "a" * 40, "../etc", "ü" * 32, "{}", " " * 32, "a" * 10_000, "\x00"]
)
def test_nonsense_is_no_id(text):
    """Whatever a stranger writes is refused, and raises nothing."""
    assert not is_genuine(KEY, text)


def test_shouted_id_is_none():
    """An id has one spelling."""
    assert not is_genuine(KEY, new_id(KEY).upper())
