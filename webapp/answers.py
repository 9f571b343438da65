"""The error table: what went wrong, as an answer that an old caller can read too."""

from __future__ import annotations

import logging
import math
from typing import Any

from flask import Flask, Response, jsonify
from werkzeug.exceptions import HTTPException, InternalServerError, RequestEntityTooLarge

from deepseek_client import DeepSeekError, InvalidRequest

from .bodies import BODY_LIMIT_BYTES

__all__ = ["init_app", "problem_of"]

_logger = logging.getLogger(__name__)


def init_app(app: Flask) -> None:
    """Answers every failure of the app with {"error", "code", "text": ""} and the status of its class."""
    app.register_error_handler(DeepSeekError, _answer_failure)
    app.register_error_handler(HTTPException, _answer_http)


def problem_of(error: DeepSeekError) -> dict[str, Any]:
    """The sentence and the code that a caller gets."""
    return {"error": str(error), "code": error.code}


def _answer_failure(error: DeepSeekError) -> Response:
    response = jsonify({**problem_of(error), "text": ""})
    response.status_code = error.http_status
    if error.http_status == 503:
        # RFC 9110: whole seconds. Never 0, which invites a storm; 1 when nobody knows better; no more than an hour.
        response.headers["Retry-After"] = str(max(1, math.ceil(min(error.retry_after_s or 1, 3600))))
    return response


def _answer_http(error: HTTPException) -> Response:
    """Flask's own refusals (404, 405, 413) and, as a 500 without its cause, anything unexpected."""
    code = (error.name or "error").lower().replace(" ", "_").replace("'", "")
    sentence = error.description or error.name
    if isinstance(error, RequestEntityTooLarge):
        code, sentence = InvalidRequest.code, f"The body is too large: need at most {BODY_LIMIT_BYTES} bytes."
    elif isinstance(error, InternalServerError):
        sentence = "The server could not answer the request."
    response = jsonify({"error": sentence, "code": code, "text": ""})
    response.status_code = error.code or 500
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = (
                value.strip()
            )  # Werkzeug 2.3 ends a challenge without parameters in a blank
    return response
