"""Who may ask: with WEB_API_TOKEN set, /api/llm/* wants it."""

from __future__ import annotations

import hmac

from flask import Flask, current_app, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

__all__ = ["init_app"]

_GUARDED = "/api/llm/"


def init_app(app: Flask) -> None:
    """Answers 401 to requests for /api/llm/* that do not carry the token of the settings, if they have one."""
    app.before_request(_refuse_strangers)


def _refuse_strangers() -> None:
    token = current_app.extensions["llm_settings"].web_api_token
    if not token or not request.path.startswith(_GUARDED):
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # Bytes: compare_digest takes no text beyond ASCII.
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
        return
    raise Unauthorized(
        "Need the header Authorization: Bearer with the token.", www_authenticate=WWWAuthenticate("bearer")
    )
