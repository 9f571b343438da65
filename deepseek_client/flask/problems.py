"""What went wrong, as an answer: {"error", "code", "text": ""}, which an old caller that reads "text" survives."""

from __future__ import annotations

import math
from typing import Any

from flask import Flask, jsonify, request_started
from flask.typing import ResponseReturnValue

from deepseek_client import DeepSeekError

__all__ = ["init_app", "problem_of"]


def init_app(app: Flask) -> None:
    """Answers a DeepSeekError of any view with its code and the status of its class.

    A handler of the application's own for DeepSeekError wins. Under Flask-RESTful and Flask-RESTX, which would make
    every exception of theirs a 500, it is answered too.
    """
    if DeepSeekError not in app.error_handler_spec[None][None]:
        app.register_error_handler(DeepSeekError, _answer)
    request_started.connect(_stay_in_front, app)


def problem_of(error: DeepSeekError) -> dict[str, Any]:
    """The sentence and the code that a caller gets.

    Threads: any.
    """
    return {"error": str(error), "code": error.code}


def _answer(error: DeepSeekError) -> ResponseReturnValue:
    response = jsonify({**problem_of(error), "text": ""})
    response.status_code = error.http_status
    if error.http_status == 503:
        response.headers["Retry-After"] = str(_retry_after(error.retry_after_s))
    return response


def _retry_after(wait_s: float | None) -> int:
    """RFC 9110: whole seconds. Never 0, which invites a storm; 1 when nobody knows better; no more than an hour."""
    if wait_s is None or not wait_s > 1:  # also what is not a number
        return 1
    return math.ceil(min(wait_s, 3600))


class _Front:
    """Stands for an `app.handle_user_exception` that another extension has put in the place of Flask's."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._replaced = app.handle_user_exception

    def __call__(self, error: Exception) -> Any:
        if isinstance(error, DeepSeekError):
            return type(self._app).handle_user_exception(self._app, error)
        return self._replaced(error)


def _stay_in_front(app: Flask, **_: Any) -> None:
    # At each request: the other extension may come before us or after us.
    handle = vars(app).get("handle_user_exception")
    if handle is not None and not isinstance(handle, _Front):
        app.handle_user_exception = _Front(app)  # type: ignore[method-assign,assignment]
