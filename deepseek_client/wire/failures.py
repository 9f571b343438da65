"""From what HTTP and `requests` say to our errors; the one translator of their exceptions."""

from __future__ import annotations

import datetime
import email.utils
import re
import ssl
import time
from collections.abc import Mapping

import requests

from ..errors import (
    AuthenticationFailed,
    BadReply,
    ConfigError,
    ConnectionFailed,
    DeadlineExceeded,
    DeepSeekError,
    InsufficientBalance,
    PoolClosed,
    RateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from .exchange import Exchange

__all__ = ["failure_from", "failure_of_end", "failure_of_status", "printable", "retry_after_s"]

_BY_STATUS: dict[int, tuple[type[DeepSeekError], str]] = {
    400: (UpstreamRejected, "refused the request as malformed"),
    401: (AuthenticationFailed, "does not accept the API key"),
    402: (InsufficientBalance, "reports an insufficient balance"),
    403: (AuthenticationFailed, "does not permit this API key to make the request"),
    404: (UpstreamRejected, "does not know the address or the model"),
    407: (UpstreamRejected, "was not reached: the proxy wants other credentials"),
    408: (UpstreamUnavailable, "waited too long for the request"),
    # Not the API's: gateways answer 409 while another request holds a lock (OpenAI's own clients try it again), and
    # 499 when they take their caller for gone, which it is not.
    409: (UpstreamUnavailable, "is busy with a conflicting request"),
    422: (UpstreamRejected, "refused a parameter of the request"),
    425: (UpstreamUnavailable, "does not take the request yet"),
    429: (RateLimited, "refuses more requests for now"),
    499: (UpstreamUnavailable, "was cut off by a gateway before it"),
}
_ACCOUNT = (AuthenticationFailed, InsufficientBalance)

# What `requests` raises when a request cannot even be built from the client's settings.
_UNBUILDABLE = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidHeader,
)

_LONGEST_RETRY_AFTER_S = 1e9


def failure_of_status(
    status: int, headers: Mapping[str, str], *, is_apis_own: bool = True, api_message: str = ""
) -> DeepSeekError:
    """The error that a status other than 2xx is.

    Args:
        is_apis_own: whether the API itself speaks. A gateway that refuses one request says nothing of the account.
        api_message: the API's own words, for logs.
    """
    default = UpstreamUnavailable if status >= 500 else UpstreamRejected
    kind, what = _BY_STATUS.get(status, (default, "cannot answer the request"))
    who = "The API"
    if kind in _ACCOUNT and not is_apis_own:
        kind, who, what = UpstreamRejected, "Something before the API", "refused the request"
    return kind(
        f"{who} {what} (HTTP {status}).", retry_after_s=retry_after_s(headers), api_message=api_message
    )


def failure_of_end(exchange: Exchange) -> DeepSeekError:
    """The error of a call that was ended from outside, or whose time was over when it broke."""
    if exchange.aborted == "closing":
        return PoolClosed("The service is shutting down.")
    return DeadlineExceeded("The call's time is over.")


def failure_from(error: Exception) -> DeepSeekError:
    """The error that an exception of `requests`, or of the wire itself, is; chained to it."""
    failure: DeepSeekError
    if isinstance(error, DeepSeekError):  # the wire's own: a reply that is too large
        return error
    if isinstance(error, _UNBUILDABLE):
        failure = ConfigError("The request cannot be built: check the base URL, the proxy and the key.")
    elif isinstance(error, requests.exceptions.ContentDecodingError):
        failure = BadReply("The API's reply cannot be decompressed.")
    elif isinstance(error, requests.exceptions.SSLError) and _is_about_trust(error):
        failure = ConnectionFailed("The certificate of the API is not trusted, or is not for its host.")
        failure.retryable = False  # it will be no other one soon
    elif isinstance(error, requests.exceptions.SSLError):
        failure = ConnectionFailed("The TLS connection to the API failed.")
    elif isinstance(error, requests.exceptions.ProxyError):
        failure = _failure_of_proxy(error)
    elif isinstance(error, requests.exceptions.ConnectTimeout):
        failure = ConnectionFailed("The API took no connection in time.")
    elif isinstance(error, (requests.exceptions.Timeout, TimeoutError)):
        failure = ConnectionFailed("The API sent nothing for too long.")
    elif type(error) is OSError and error.errno is None:
        # How requests reports a CA bundle or a client certificate that does not exist.
        failure = ConfigError("The TLS certificate files of the connection to the API cannot be read.")
    else:
        failure = ConnectionFailed("The connection to the API failed.")
    failure.__cause__ = error
    return failure


def _failure_of_proxy(error: Exception) -> DeepSeekError:
    """The error of a proxy that gave no tunnel; nothing was sent. http.client names its status in a text alone."""
    found = re.search("Tunnel connection failed: ([0-9]{3})", str(error))
    if found is None:
        return ConnectionFailed("The connection to the proxy failed.")
    failure = ConnectionFailed(f"The proxy refuses the connection to the API (HTTP {found[1]}).")
    # One that wants other credentials, or forbids the host, will not change its mind soon.
    failure.retryable = found[1] not in ("401", "403", "407")
    return failure


def _is_about_trust(error: Exception) -> bool:
    """Whether a certificate was refused, below what urllib3 and `requests` have wrapped around that."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None or "certificate verify failed" in str(error)  # the words of pyOpenSSL


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the server asks us to wait, in seconds from now; None when it does not say, or not understandably.

    Source: RFC 9110, section 10.2.3: whole seconds or an HTTP date. Servers also send fractions, the header twice, and
    OpenAI's `retry-after-ms`; the longest wait counts.
    """
    if (millis := _longest(headers.get("retry-after-ms", ""))) is not None:
        return min(_LONGEST_RETRY_AFTER_S, millis / 1000)
    text = headers.get("Retry-After", "").strip()
    if (seconds := _longest(text)) is not None:
        return min(_LONGEST_RETRY_AFTER_S, seconds)
    # Two headers arrive as one, joined by a comma, which a date has too.
    dates = re.findall(r"[A-Za-z]{3,9}, [^,]+", text) or [text]  # without a comma: as C's asctime() writes it
    waits = [wait_s for date in dates if (wait_s := _seconds_until(date.strip())) is not None]
    return max(waits, default=None)


def _longest(text: str) -> float | None:
    """The largest of the numbers in a header, of which several arrive as one; None if it holds something else."""
    numbers = [part.strip() for part in text.split(",") if part.strip()]
    is_understood = all(re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", number) for number in numbers)
    return max(map(float, numbers), default=None) if is_understood else None


def _seconds_until(date: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(date)
        if moment.tzinfo is None:  # a date of HTTP that names no zone is in UTC
            moment = moment.replace(tzinfo=datetime.timezone.utc)
        return min(_LONGEST_RETRY_AFTER_S, max(0.0, moment.timestamp() - time.time()))
    except (ValueError, OverflowError):
        return None


def printable(text: str) -> str:
    """The text with an escape for each character that a terminal would obey, or not show.

    Threads: any.
    """
    return (
        text
        if text.isprintable()
        else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    )
