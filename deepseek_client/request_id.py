"""Which request the running code belongs to: an id that log lines, answers and requests to the API carry."""

from __future__ import annotations

import contextvars
import re
import uuid

__all__ = ["accept", "current", "forget"]

_current: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)


def current() -> str | None:
    """The id; None outside of a request. WorkerPool carries it into the thread that makes the call."""
    return _current.get()


def accept(given: str | None) -> str:
    """Gives the running context the id that the caller sent, or a new one if it sent none that is usable.

    Args:
        given: usable are 1 to 128 letters, digits, ".", "_", "-", ":": nothing that could forge a line of a log.
    """
    usable = given is not None and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given)
    request_id = given if given is not None and usable else uuid.uuid4().hex
    _current.set(request_id)
    return request_id


def forget() -> None:
    """Takes the id from the running context: its request is over."""
    _current.set(None)
