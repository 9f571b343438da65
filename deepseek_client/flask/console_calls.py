"""What the console sends to try something: counted apart from what others ask, and answered with what its calls did.

Such a request bears the header `X-LLM-Source: console`. The metrics of HTTP have it under the name of its route with
"console " before it, and its answer bears the header `X-LLM-Calls`.
"""

from __future__ import annotations

import contextvars
import os
from typing import Any

from flask import Flask, Response, request, request_finished, request_started, request_tearing_down

from deepseek_client import events

from . import envelope

__all__ = ["init_app"]

_calls: contextvars.ContextVar[list[events.CallFinished] | None] = contextvars.ContextVar(
    "console_calls", default=None
)


def init_app(app: Flask) -> None:
    """Tells the console's requests from others in this application."""
    events.subscribe(_note_call)
    request_started.connect(_begin, app)
    request_finished.connect(_tell, app)
    request_tearing_down.connect(_forget, app)


def _begin(_: Flask, **__: Any) -> None:
    if request.headers.get("X-LLM-Source") == "console":
        _calls.set(
            []
        )  # the threads and tasks of the request's calls have copies of this context, and the same list
        envelope.name_route(f"console {request.url_rule.rule if request.url_rule else 'unmatched'}")


def _note_call(event: Any) -> None:
    if isinstance(event, events.CallFinished) and (calls := _calls.get()) is not None:
        calls.append(event)


def _tell(_: Flask, response: Response, **__: Any) -> None:
    calls = _calls.get()
    if calls is not None:
        facts = {
            "mode": calls[-1].mode if calls else "none",
            "pid": os.getpid(),
            "calls": len(calls),
            "attempts": sum(call.attempts for call in calls),
            "waited_ms": round(1000 * max((call.waited_s for call in calls), default=0)),
            "ran_ms": round(1000 * max((call.ran_s for call in calls), default=0)),
        }
        response.headers["X-LLM-Calls"] = " ".join(f"{name}={value}" for name, value in facts.items())


def _forget(_: Flask, **__: Any) -> None:
    if _calls.get() is not None:
        _calls.set(None)
