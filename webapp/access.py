"""Who may ask: with WEB_API_TOKEN set, /api/llm/* wants it."""

from __future__ import annotations

import hmac

from flask import Flask, Response, current_app, jsonify, request

__all__ = ["init_app"]

_GUARDED = "/api/llm/"


def init_app(app: Flask) -> None:
    """Answers 401 to requests for /api/llm/* that do not carry the token of the settings, if they have one."""
    app.before_request(_refuse_strangers)


def _refuse_strangers() -> Response | None:
    token = current_app.extensions["llm_settings"].web_api_token
    if not token or not request.path.startswith(_GUARDED):
        return None
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # Bytes: compare_digest takes no text beyond ASCII.
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
        return None
    response = jsonify(
        {"error": "Need the header Authorization: Bearer with the token.", "code": "unauthorized", "text": ""}
    )
    response.status_code = 401
    response.headers["WWW-Authenticate"] = "Bearer"
    return response
