"""What an exchange means: the one place where HTTP, `requests` and DeepSeek's reply become our errors.

Source of the rules: the vendor's documentation. Its `error.code` says `invalid_request_error` for 401 and 402 too,
so only the status classifies; output that is not JSON is replaced by blanks in JSON mode, so a blank is no answer.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from typing import Any

import requests

from .errors import (
    AuthenticationFailed,
    BadReply,
    ConfigError,
    ConnectionFailed,
    DeadlineExceeded,
    DeepSeekError,
    InsufficientBalance,
    InvalidRequest,
    PoolClosed,
    RateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from .wire.exchange import Exchange

__all__ = ["blank_result", "check_text", "failure_of", "outcome_of", "returned_or_raised"]

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


def check_text(method: str, text: Any) -> None:
    """Raises InvalidRequest if what a "chat" or "parse" is asked about is no text: the client would swallow that."""
    if not isinstance(text, str):
        raise InvalidRequest(f"The text of {method} is {text!r:.40}: need a str.")


def outcome_of(exchange: Exchange, client: Any) -> Any:
    """What a finished "chat" or "parse" of a DeepSeek client really gave, whatever the client made of it.

    A parse reply in a Markdown fence, which the legacy client takes for "unknown", is understood here.

    Args:
        client: whose `api_key` and `base_url`, if it has them, explain a call that never left.

    Raises:
        DeepSeekError: it failed, although the client may have swallowed that.
        Exception: what the client raised, if the wire shows no failure.
    """
    blank = blank_result(exchange.method)
    gave_nothing = exchange.raised is not None or _is_blank(exchange.result, blank)
    if exchange.requests and not exchange.path.endswith("/chat/completions") and not gave_nothing:
        return exchange.result  # a client of another API, or one that asked for something else afterwards
    failure = failure_of(exchange)
    if failure is not None:
        raise failure
    if exchange.requests == 0 and gave_nothing:
        raise _reason_unsent(client, exchange.raised)
    if exchange.requests == 0 or (exchange.body is None and not gave_nothing):
        return returned_or_raised(exchange)  # not a client of requests, or one that streams: it knows better
    completion = _json_object(exchange.body)
    usage = (completion or {}).get("usage")
    exchange.usage = usage if isinstance(usage, dict) else {}
    content = _content_of(exchange.body, completion)
    if exchange.raised is not None:
        raise exchange.raised
    if exchange.method == "parse":
        is_legacy = isinstance(exchange.result, dict) and exchange.result.keys() == blank.keys()
        return _fields_of(_object_in(content), blank) if is_legacy else exchange.result
    return {"text": content} if gave_nothing else exchange.result


def returned_or_raised(exchange: Exchange) -> Any:
    """What the client itself says."""
    if exchange.raised is not None:
        raise exchange.raised
    return exchange.result


def _is_blank(result: Any, blank: dict[str, Any]) -> bool:
    if isinstance(result, dict) and blank.keys() == {"text"}:
        return not (isinstance(result.get("text"), str) and result["text"].strip())
    return bool(result == blank)


def _reason_unsent(client: Any, raised: Exception | None) -> Exception:
    """Why a client that gave nothing has sent nothing."""
    failure: DeepSeekError
    if not re.fullmatch("[!-~]+", str(getattr(client, "api_key", "none is needed"))):
        failure = ConfigError("Nothing was sent: the API key is missing or has characters that no key has.")
    elif not re.match("https?://[^/]", str(getattr(client, "base_url", "http://x"))):
        failure = ConfigError("Nothing was sent: the base URL is not an address.")
    elif raised is not None and not isinstance(raised, (requests.RequestException, ValueError)):
        return raised  # a defect of the client
    elif raised is not None:
        failure = _failure_from(raised)
    else:
        failure = ConnectionFailed("Nothing was sent: the client failed before it reached the network.")
    failure.__cause__ = raised
    return failure


def failure_of(exchange: Exchange) -> DeepSeekError | None:
    """The failure that the wire shows; None if a reply with status 2xx arrived whole, or if nothing was sent."""
    if exchange.aborted == "closing":
        return PoolClosed("The service is shutting down.")
    is_late = exchange.deadline is not None and (exchange.ended or 0) >= exchange.deadline
    if exchange.aborted is not None or (exchange.error is not None and is_late):
        return DeadlineExceeded("The call's time is over.")
    if exchange.status is not None and not 200 <= exchange.status < 300:
        default = UpstreamUnavailable if exchange.status >= 500 else UpstreamRejected
        kind, what = _BY_STATUS.get(exchange.status, (default, "cannot answer the request"))
        retry_after_s = _seconds_until(exchange.retry_after)
        failure = kind(f"The API {what} (HTTP {exchange.status}).", retry_after_s=retry_after_s)
        failure.__cause__ = exchange.error
        return failure
    return None if exchange.error is None else _failure_from(exchange.error)


def _failure_from(error: Exception) -> DeepSeekError:
    failure: DeepSeekError
    if isinstance(error, DeepSeekError):  # the transport's own: a reply that is too large
        return error
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


def _json_object(text: bytes | str | None) -> dict[str, Any] | None:
    """The JSON object that the text is; None when it is something else."""
    try:
        found = json.loads(text or "", parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _fields_of(data: dict[str, Any], blank: dict[str, Any]) -> dict[str, Any]:
    """The fields of a parse result; null and absent ones as the legacy client has them.

    Raises:
        BadReply: a field is of another type: "no" as `allowed` would count as true.
    """
    fields = {name: value if data.get(name) is None else data[name] for name, value in blank.items()}
    for name, value in fields.items():
        if type(value) is not type(blank[name]):
            raise BadReply(
                f"The API answered with an object whose {name} is of the wrong type.", is_completion=True
            )
    return fields


def _content_of(body: bytes | None, completion: dict[str, Any] | None) -> str:
    """The text of a completion that arrived with status 2xx.

    Raises:
        BadReply: the body is blank, cut, not a completion, without text, or was ended early by the server.
    """
    if not (body or b"").strip():
        raise BadReply("The API answered 200 with a blank body.")
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
        raise BadReply("The API answered 200 with blank content.", is_completion=True)
    return content


def _object_in(content: str) -> dict[str, Any]:
    """The JSON object that a model's text holds, bare or in a Markdown fence.

    Raises:
        BadReply: there is none.
    """
    fenced = re.search(r"```\w*\s*(\{.*\})\s*```", content, re.DOTALL)
    data = _json_object(fenced[1] if fenced else content.strip("\ufeff \t\r\n"))
    if data is None:
        raise BadReply(
            "The API answered with text that is not the JSON object that was asked for.", is_completion=True
        )
    return data
