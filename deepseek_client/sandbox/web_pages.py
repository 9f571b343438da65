"""Who may change what the sandbox does: programs of this machine, and no web page that a browser shows here."""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web

from ..settings import is_loopback
from .refusals import Refusal

__all__ = ["refuse_web_page"]

# What a form of a page can send anywhere without asking the server first.
_OF_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")


def refuse_web_page(request: web.Request) -> None:
    """Refuses a request that a browser sends for a web page of another origin, or that a form there could send.

    Raises:
        Refusal: 403 for a page of another origin, 415 for a form.

    Threads: the event loop's.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site not in (None, "same-origin", "none"):
        raise Refusal(403, f"Sec-Fetch-Site: {site}: a web page cannot script the sandbox.")
    if origin is not None and origin.partition("://")[2].lower() != request.host.lower():
        raise Refusal(403, "Origin: a web page cannot script the sandbox.")
    if not _names_this_machine(request.host):  # a page whose name was made to lead here
        raise Refusal(403, "Host: need a loopback address such as 127.0.0.1, ::1 or localhost.")
    if "Content-Type" in request.headers and request.content_type in _OF_FORMS:
        raise Refusal(415, f"Content-Type: {request.content_type}: need application/json, or none.")


def _names_this_machine(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
