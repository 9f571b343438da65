"""What a block of code asks of the calls inside of it, whatever client makes them."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Protocol

from ..errors import ConfigError, InvalidRequest
from ..settings import ENGINES
from .call import Call

__all__ = [
    "CallOptions",
    "WebRequest",
    "call_options",
    "check_engine",
    "check_seconds",
    "current_options",
    "current_request",
    "set_request",
]


_LONGEST_S = 1e6  # eleven days; what the system takes as a timeout


@dataclass(frozen=True)
class CallOptions:
    """The options of the running code.

    Attributes:
        deadline_s: seconds for the whole of one call; None for LLM_DEADLINE_S.
        engine: what runs it; None for LLM_ENGINE.
    """

    deadline_s: float | None = None
    engine: str | None = None


_NONE = CallOptions()
_options: contextvars.ContextVar[CallOptions] = contextvars.ContextVar("llm_options", default=_NONE)
current_options = _options.get


class WebRequest(Protocol):
    """The request of a web server for which the running code makes its calls.

    Threads: any.
    """

    def seconds_left(self, deadline_s: float) -> float:
        """What is left of a call's deadline after the time that the request has waited; not more than 0 if nothing."""

    def admit(self, call: Call) -> None:
        """Lets a call begin, and adds itself to its permits.

        Raises:
            Overloaded: the request had waited for too long. Nothing was sent.
            CallerLeft: nobody waits for its answer any more. Nothing was sent.
        """


_request: contextvars.ContextVar[WebRequest | None] = contextvars.ContextVar("llm_request", default=None)
current_request = _request.get
set_request = _request.set


def check_seconds(deadline_s: Any) -> None:
    """Raises InvalidRequest if a deadline is not a finite number of seconds, at least 0."""
    if not isinstance(deadline_s, (int, float)) or not 0 <= deadline_s <= _LONGEST_S:  # also for nan
        raise InvalidRequest(f"deadline_s is {deadline_s!r:.40}: need seconds, 0 to {_LONGEST_S:g}.")


def check_engine(engine: str) -> None:
    """Raises ConfigError if there is no such engine, or what it needs is not installed."""
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine!r}: need one of {', '.join(ENGINES)}.")
    if engine == "loop" and find_spec("greenlet") is None:
        raise ConfigError("The engine loop needs greenlet: pip install 'deepseek-client-async[loop]'.")


@contextmanager
def call_options(*, deadline_s: float | None = None, engine: str | None = None) -> Iterator[None]:
    """Gives every call inside of the block these options; what is None stays as it is around the block.

    Args:
        deadline_s: seconds for the whole of one call, from its start: queue, every attempt, back-off, body. In a web
            request, the time that this has waited for its server is taken from a deadline above LLM_DEADLINE_S; a
            shorter one is cut only by what the wait has left of LLM_DEADLINE_S.
        engine: "threads" runs it on the thread pool, "loop" on the event loop that awaits it.

    Raises:
        InvalidRequest: `deadline_s` is not a number of seconds, at least 0.
        ConfigError: there is no such engine, or greenlet, which "loop" needs, is not installed.

    Threads: the options belong to the running thread or task, and to the tasks that it starts.
    """
    if deadline_s is not None:
        check_seconds(deadline_s)
    if engine is not None:
        check_engine(engine)
    outer = _options.get()
    token = _options.set(
        replace(
            outer,
            deadline_s=outer.deadline_s if deadline_s is None else deadline_s,
            engine=engine or outer.engine,
        )
    )
    try:
        yield
    finally:
        _options.reset(token)
