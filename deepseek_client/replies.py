"""What an exchange means: the one place where HTTP, `requests` and DeepSeek's reply become our errors.

Source of the rules: the vendor's documentation. Its `error.code` says `invalid_request_error` for 401 and 402 too,
so only the status classifies; output that is not JSON is replaced by blanks in JSON mode, so a blank is no answer.
"""

from __future__ import annotations

import email.utils
import json
import time
from typing import Any

import requests

from .errors import (
    AuthenticationFailed,
    BadReply,
    ConfigError,
    ConnectionFailed,
    DeepSeekError,
    InsufficientBalance,
    RateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from .exchange import Exchange

__all__ = ["blank_result", "failure_of", "outcome_of", "usage_of"]

_BY_STATUS: dict[int, tuple[type[DeepSeekError], str]] = {
    400: (UpstreamRejected, "refused the request as malformed"),
    401: (AuthenticationFailed, "does not accept the API key"),
    402: (InsufficientBalance, "reports an insufficient balance"),
    403: (AuthenticationFailed, "does not permit this API key to make the request"),
    404: (UpstreamRejected, "does not know the address or the model"),
    422: (UpstreamRejected, "refused a parameter of the request"),
    429: (RateLimited, "refuses more requests for now"),
}

# What `requests` raises when a request cannot even be built from the client's settings.
_UNBUILDABLE = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidHeader,
)


def blank_result(method: str) -> dict[str, Any]:
    """What the legacy client returns for a failed "chat" or "parse"."""
    if method == "chat":
        return {"text": ""}
    return {"intent": "unknown", "slots": {}, "allowed": True, "reason": ""}


def outcome_of(exchange: Exchange) -> Any:
    """What a finished "chat" or "parse" of a DeepSeek client really gave, whatever the client made of it.

    A parse reply in a Markdown fence, which the legacy client takes for "unknown", is understood here.

    Raises:
        DeepSeekError: it failed, although the client may have swallowed that.
        Exception: what the client raised, if the wire shows no failure.
    """
    failure = failure_of(exchange)
    if failure is not None:
        raise failure
    blank = blank_result(exchange.method)
    swallowed = exchange.raised is None and exchange.result == blank
    if exchange.requests == 0 and (swallowed or isinstance(exchange.raised, ValueError)):
        raise ConfigError(
            "Nothing was sent: the API key is missing, or the base URL is not an address."
        ) from exchange.raised
    if exchange.requests == 0 or (exchange.body is None and not swallowed):
        if exchange.raised is not None:
            raise exchange.raised
        return exchange.result  # not a client of requests, or one that streams: it knows better
    content = _content_of(exchange)
    if exchange.method == "parse" and swallowed:
        data = _object_in(content)
        return {name: data.get(name, value) for name, value in blank.items()}
    if exchange.raised is not None:
        raise exchange.raised
    return exchange.result


def failure_of(exchange: Exchange) -> DeepSeekError | None:
    """The failure that the wire shows; None if a reply with status 2xx arrived whole, or if nothing was sent."""
    if exchange.error is not None:
        return _failure_from(exchange.error)
    if exchange.status is None or 200 <= exchange.status < 300:
        return None
    default = UpstreamUnavailable if exchange.status >= 500 else UpstreamRejected
    kind, what = _BY_STATUS.get(exchange.status, (default, "cannot answer the request"))
    return kind(
        f"The API {what} (HTTP {exchange.status}).", retry_after_s=_seconds_until(exchange.retry_after)
    )


def _failure_from(error: Exception) -> DeepSeekError:
    failure: DeepSeekError
    if isinstance(error, _UNBUILDABLE):
        failure = ConfigError("The request cannot be built: check the base URL, the proxy and the key.")
    elif isinstance(error, requests.exceptions.ContentDecodingError):
        failure = BadReply("The API's reply cannot be decompressed.")
    elif isinstance(error, requests.exceptions.SSLError):
        failure = ConnectionFailed("The TLS connection to the API failed.")
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


def _seconds_until(retry_after: str | None) -> float | None:
    """A Retry-After header in seconds from now; None when absent or not understood.

    Source: RFC 9110, section 10.2.3: whole seconds or an HTTP date.
    """
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _completion_of(exchange: Exchange) -> dict[str, Any] | None:
    """The reply as the API's JSON object; None when there is no reply or it is something else."""
    try:
        completion = json.loads(exchange.body or b"")
    except (ValueError, RecursionError):
        return None
    return completion if isinstance(completion, dict) else None


def _content_of(exchange: Exchange) -> str:
    """The text of a completion that arrived with status 2xx.

    Raises:
        BadReply: the body is blank, cut, not a completion, without text, or was ended early by the server.
    """
    if exchange.body is not None and not exchange.body.strip():
        raise BadReply("The API answered 200 with a blank body.")
    completion = _completion_of(exchange)
    if completion is None:
        raise BadReply("The API answered 200 with something that is not a JSON object.")
    try:
        choice = completion["choices"][0]
        content, finish_reason = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        raise BadReply("The API answered 200 without a choice that holds a message.") from None
    if finish_reason == "insufficient_system_resource":
        raise BadReply("The API cut its answer short for lack of resources.")
    if not isinstance(content, str) or not content.strip():
        raise BadReply("The API answered 200 with blank content.")
    return content


def _object_in(content: str) -> dict[str, Any]:
    """The JSON object that a model's text holds, bare or in a Markdown fence.

    Raises:
        BadReply: there is none.
    """
    text = content.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") : -3]
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise BadReply("The API answered with text that is not the JSON object that was asked for.")
    return data


def usage_of(exchange: Exchange) -> dict[str, Any]:
    """The reply's token counts; empty when it has none."""
    usage = (_completion_of(exchange) or {}).get("usage")
    return usage if isinstance(usage, dict) else {}
