"""Where a redirect may take a request: never a prompt to another origin than the one that was configured."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
from requests.sessions import SessionRedirectMixin

from ..errors import UpstreamRejected

__all__ = ["Redirect", "redirect_of"]

_STATUSES = (301, 302, 303, 307, 308)
_HOST_CHARS = 100
_rules: Any = SessionRedirectMixin()


class Redirect(NamedTuple):
    """A reply that sends its request elsewhere.

    Attributes:
        host: where to, without the path, which may hold anything.
    """

    source: str
    target: str
    host: str
    body: Any

    def followed_by(self, request: requests.PreparedRequest, stays_at_origin: bool) -> Redirect | None:
        """This redirect if the request follows it; None if it is another one.

        `requests` leaves the key behind at another origin, but not the body. From http to https of the same host is no
        other origin for either of them.

        Args:
            stays_at_origin: no body may go to another origin.

        Raises:
            UpstreamRejected: the request would carry a body to another origin; it was not sent.
        """
        url = request.url or ""
        # `requests` hands the body on as it is; a host may be spelt in many ways.
        carries_body_on = bool(request.body) and request.body is self.body
        if not carries_body_on and urlsplit(url)[:2] != urlsplit(self.target)[:2]:
            return None
        if stays_at_origin and request.body and _rules.should_strip_auth(self.source, url):
            raise UpstreamRejected(f"The API redirected the request to {self.host}, where no prompt is sent.")
        return self


def redirect_of(request: requests.PreparedRequest, response: requests.Response) -> Redirect | None:
    """Where the response sends the request; None if nowhere."""
    if response.status_code not in _STATUSES or not response.headers.get("location"):
        return None
    source = request.url or ""
    try:
        target = urljoin(source, response.headers["location"])
        parts = urlsplit(target)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return None
    printable = "".join(char if char.isprintable() else "?" for char in host[:_HOST_CHARS])
    return Redirect(source, target, printable or "nowhere", request.body)
