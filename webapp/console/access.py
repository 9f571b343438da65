"""Who may use the console: programs and pages of this machine, with WEB_API_TOKEN if that is set."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from flask import Flask, Response, redirect, request, url_for
from werkzeug.exceptions import BadRequest, Forbidden, Unauthorized
from werkzeug.wrappers import Response as BaseResponse

__all__ = ["Access"]

_COOKIE = "deepseek_console"
_SESSION_S = 12 * 3600
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOGGED_EVERY_S = 60
_logger = logging.getLogger(__name__)
_OPEN = ("static", "console.login")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # without any a browser sends forms with the Origin null
    "X-Content-Type-Options": "nosniff",
}


class Access:
    """Lets requests pass that name this machine, come from the console's own page, and carry the token.

    A page that a stranger's name leads to this machine (DNS rebinding) fails at the Host header, a page of another
    origin, another port included, at what the browser says of it.

    Args:
        hosts: names by which the console may be called, beside those of loopback.
        token: gives WEB_API_TOKEN as it is now; "" for none.
        clock: `time.time`, or a test's.

    Threads: any.
    """

    def __init__(
        self, hosts: tuple[str, ...], token: Callable[[], str], clock: Callable[[], float] = time.time
    ) -> None:
        self._hosts = {*_LOOPBACK, *(host.lower() for host in hosts)}
        self._token = token
        self._clock = clock
        # The cookie is no token: a browser sends it to every port of this host.
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._wrong = 0  # tokens since the last line of the log; guarded by _lock
        self._logged_at = -math.inf  # guarded by _lock

    def init_app(self, app: Flask) -> None:
        """Guards each route of the application, and seals its answers."""
        app.before_request(self._check)
        app.after_request(_seal)

    def is_token(self, given: str) -> bool:
        """Whether this is the token; wrong ones are in the log, once a minute."""
        # Bytes: compare_digest takes no text beyond ASCII.
        is_right = hmac.compare_digest(given.strip().encode(), self._token().encode())
        if not is_right:
            self._note_wrong_token()
        return is_right

    def remember(self, response: BaseResponse) -> None:
        """Gives the browser a session of twelve hours; it ends with the console, and with the token."""
        until = str(int(self._clock() + _SESSION_S))
        response.set_cookie(
            _COOKIE, f"{until}.{self._seal_of(until)}", max_age=_SESSION_S, httponly=True, samesite="Strict"
        )

    def _check(self) -> BaseResponse | None:
        if (_host_of(request.host) or "") not in self._hosts:
            raise BadRequest("This is not a name of the console.")
        if request.method not in ("GET", "HEAD") and _is_cross_origin():
            raise Forbidden("The request comes from another page.")
        if request.endpoint in _OPEN or not self._token() or self._is_known():
            return None
        if request.endpoint == "console.page":
            return redirect(url_for("console.login"), 303)
        raise Unauthorized("Need the header Authorization: Bearer with the token.")

    def _note_wrong_token(self) -> None:
        with self._lock:
            self._wrong += 1
            if self._clock() - self._logged_at < _LOGGED_EVERY_S:
                return
            wrong, self._wrong, self._logged_at = self._wrong, 0, self._clock()
        _logger.warning("%d wrong tokens were sent to the console", wrong)

    def _is_known(self) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given):
            return True
        until, _, seal = request.cookies.get(_COOKIE, "").partition(".")
        is_ours = hmac.compare_digest(seal.encode(), self._seal_of(until).encode())
        return is_ours and int(until) > self._clock()

    def _seal_of(self, until: str) -> str:
        message = f"{until} {self._token()}".encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()


def _host_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_cross_origin() -> bool:
    """Whether a browser says that another page sends this; what is no browser says nothing."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site not in ("same-origin", "none")
    # Browsers leave it out where the connection is neither encrypted nor local.
    return origin is not None and origin.partition("://")[2].lower() != request.host.lower()


def _seal(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response
