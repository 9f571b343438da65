import gc
import threading

import pytest
from support.blocking import held_elsewhere, in_child
from support.patience import GIVE_UP_S

from deepseek_client import fork_safe
from deepseek_client.fork_safe import ForkSafeLock

# The forked children of these tests come from a process with threads on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def held():
    """A lock that another thread of this process is inside of."""
    lock = ForkSafeLock()
    with held_elsewhere(lock):
        yield lock


def is_free_for_others(lock):
    """Whether a new thread gets the lock at once."""
    taken = []
    thread = threading.Thread(target=lambda: taken.append(lock.acquire(blocking=False)))
    thread.start()
    thread.join(GIVE_UP_S)
    return taken == [True]


def test_one_thread_at_a_time(held):
    """While one thread is inside, no other gets the lock; afterwards any does."""
    assert not is_free_for_others(held)
    lock = ForkSafeLock()
    with lock:
        pass
    assert is_free_for_others(lock)


def test_it_is_reentrant():
    """The thread that is inside may enter again, and the lock is free when it has left as often."""
    lock = ForkSafeLock()
    with lock:
        with lock:
            pass
        assert not is_free_for_others(lock)
    assert is_free_for_others(lock)


def test_an_error_inside_frees_it():
    """What raises inside leaves the lock free, and the error goes on."""
    lock = ForkSafeLock()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    assert is_free_for_others(lock)


def test_a_child_can_take_what_a_thread_of_its_parent_held(held):
    """A forked child enters the lock; in the parent the thread still holds it."""

    def enter():
        with held:
            assert not is_free_for_others(held)

    in_child(enter)
    assert not is_free_for_others(held)


def test_a_fork_inside_of_the_lock():
    """A thread that forks while it is inside leaves the lock in the child as in the parent."""
    lock = ForkSafeLock()

    def leave():
        assert not is_free_for_others(lock)
        lock.__exit__(None, None, None)
        assert is_free_for_others(lock)

    with lock:
        in_child(leave)
    assert is_free_for_others(lock)


def test_locks_are_not_kept_alive():
    """A lock that nobody uses any more is forgotten."""
    before = len(fork_safe._locks)
    locks = [ForkSafeLock() for _ in range(3)]
    assert len(fork_safe._locks) == before + 3
    locks.clear()
    gc.collect()
    assert len(fork_safe._locks) == before
