"""Signals that come where Python drops what their handler raises."""

from __future__ import annotations

import os
import weakref

__all__ = ["signal_in_a_callback"]


class _Thing:
    pass


def signal_in_a_callback(number: int) -> None:
    """Sends this process a signal whose handler runs in the callback of a weak reference."""

    def tell(_: object) -> None:
        os.kill(os.getpid(), number)
        for _ in range(1000):  # the handler runs between two of these
            pass

    thing = _Thing()
    reference = weakref.ref(thing, tell)
    del thing
    assert reference() is None
