"""What every answer has: headers for the browser, and JSON also where Flask itself refuses a request."""

from __future__ import annotations

from flask import Flask, Response, jsonify
from werkzeug.exceptions import (
    Forbidden,
    HTTPException,
    InternalServerError,
    RequestEntityTooLarge,
    RequestTimeout,
)

from deepseek_client import InvalidRequest

from .bodies import BODY_LIMIT_BYTES

__all__ = ["HEADERS", "init_app"]

# The answers are data for programs, and say what a player typed: nothing to render, to embed or to keep.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def init_app(app: Flask) -> None:
    """Seals each answer, and answers Flask's refusals as {"error", "code", "text": ""}."""
    app.after_request(_seal)
    app.register_error_handler(HTTPException, _answer_refusal)


def _seal(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _answer_refusal(error: HTTPException) -> Response:
    """Flask's own refusals (404, 405, 408, 413) and, as a 500 without its cause, anything unexpected."""
    code = (error.name or "error").lower().replace(" ", "_").replace("'", "")
    sentence = error.description or error.name
    if isinstance(error, RequestEntityTooLarge):
        code, sentence = InvalidRequest.code, f"The body is too large: need at most {BODY_LIMIT_BYTES} bytes."
    elif isinstance(error, (Forbidden, RequestTimeout)):
        code = InvalidRequest.code
    elif isinstance(error, InternalServerError):
        sentence = "The server could not answer the request."
    response = jsonify({"error": sentence, "code": code, "text": ""})
    response.status_code = error.code or 500
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            # Werkzeug 2.3 ends a challenge without parameters in a blank.
            response.headers[name] = value.strip()
    return response
