"""Who may ask: with WEB_API_TOKEN set, /api/llm/* wants it; without, no web page of another site may."""

from __future__ import annotations

import hmac

from flask import Flask, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from .extensions import deepseek

__all__ = ["init_app"]

_GUARDED = "/api/llm/"
_SAFE = ("GET", "HEAD", "OPTIONS")  # a browser sends no body with them, so they make no call


def init_app(app: Flask) -> None:
    """Answers 401 to requests for /api/llm/* that do not carry the token of the settings, if they have one.

    Without a token it answers 403 to what a page of another site makes a browser send there: each call costs money.
    """
    app.before_request(_refuse_strangers)


def _refuse_strangers() -> None:
    token = deepseek.settings.web_api_token
    if not request.path.startswith(_GUARDED):
        return
    if not token:
        if request.method not in _SAFE and _is_cross_site():
            raise Forbidden("The request comes from a web page of another site.")
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # Bytes: compare_digest takes no text beyond ASCII.
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
        return
    raise Unauthorized(
        "Need the header Authorization: Bearer with the token.", www_authenticate=WWWAuthenticate("bearer")
    )


def _is_cross_site() -> bool:
    """Whether a browser says that a page of another origin sends this; what is no browser says nothing."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site not in ("same-origin", "none")
    # Browsers leave it out where the connection is neither encrypted nor local.
    return origin is not None and origin.partition("://")[2].lower() != request.host.lower()
