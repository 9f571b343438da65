"""What a DeepSeek reply means: the one place where a chat's or a parse's reply becomes an answer or an error.

Source of the rules: the vendor's documentation. Its `error.code` says `invalid_request_error` for 401 and 402 too,
so the status classifies; output that is not JSON is replaced by blanks in JSON mode, so a blank is no answer.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from typing import Any

import requests

from .calls.call import Attempt
from .client import DeepSeekClient
from .errors import (
    BadReply,
    ConfigError,
    ConnectionFailed,
    DeepSeekError,
)
from .fences import object_in
from .wire.exchange import Exchange, current
from .wire.failures import failure_from, failure_of_end, failure_of_status, printable

__all__ = ["blank_result", "outcome_of"]

_BLANKS: dict[str, dict[str, Any]] = {
    "chat": {"text": ""},
    "parse": {"intent": "unknown", "slots": {}, "allowed": True, "reason": ""},
}
_API_MESSAGE_LIMIT = 300  # characters; long enough for every sentence of the documentation
_clients_logger = logging.getLogger(DeepSeekClient.__module__)
_NUMBERS = ("code", "status", "status_code", "statusCode", "http_status")  # where error objects have it
_DEPTH_LIMIT = 100  # of objects and lists in a parse reply: what answers it must be able to write it again


def blank_result(method: str) -> dict[str, Any]:
    """What the legacy client returns for a failed "chat" or "parse"."""
    return {**_BLANKS[method], **({} if method == "chat" else {"slots": {}})}


def outcome_of(attempt: Attempt, client: Any) -> Any:
    """What a finished "chat" or "parse" of a DeepSeek client really gave, whatever the client made of it.

    A parse reply in a Markdown fence, which the legacy client takes for "unknown", is understood here.

    Args:
        client: whose `api_key` and `base_url`, if it has them, explain a call that never left.

    Raises:
        DeepSeekError: it failed, although the client may have swallowed that.
        Exception: what the client raised, if the wire shows no failure.
    """
    exchange = attempt.exchange
    blank = _BLANKS[attempt.call.method]
    gave_nothing = attempt.raised is not None or _is_blank(attempt.result, blank)
    if exchange.requests == 0:
        return _unsent(attempt, client, gave_nothing)
    if not exchange.path.endswith("/chat/completions") and not gave_nothing:
        return attempt.result  # a client of another API, or one that asked for something else afterwards
    key = str(getattr(client, "api_key", ""))
    failure = _failure_of(exchange, key)
    if failure is not None:
        raise failure
    completion = _json_of(exchange)
    if isinstance(completion, dict):
        attempt.usage = completion["usage"] if isinstance(completion.get("usage"), dict) else {}
    if not (gave_nothing or isinstance(client, DeepSeekClient)):
        return _theirs(attempt, completion, key)
    if exchange.body is None and not gave_nothing:
        return attempt.result  # it has read the body itself, and knows better
    content = _content_of(attempt, completion, key)
    if attempt.raised is not None:
        raise attempt.raised
    if attempt.call.method == "chat":
        return {"text": content} if gave_nothing else attempt.result
    if not gave_nothing:
        return _checked(attempt.result)
    data = object_in(content)
    return _checked({name: data.get(name, value) for name, value in blank.items()})


def _unsent(attempt: Attempt, client: Any, gave_nothing: bool) -> Any:
    """What a call gave of which the wire saw nothing: the client knows better, unless it is one that cannot send."""
    exchange = attempt.exchange
    failure = _failure_of(exchange, "")
    if failure is not None:
        raise failure
    if gave_nothing and (reason := _why_it_cannot_send(client)) is not None:
        reason.__cause__ = attempt.raised
        raise reason
    if isinstance(attempt.raised, requests.RequestException):
        raise failure_from(attempt.raised)
    if attempt.raised is not None:
        raise attempt.raised
    if gave_nothing and isinstance(client, DeepSeekClient):
        return _of_a_stand_in(attempt, client)
    return attempt.result


def _of_a_stand_in(attempt: Attempt, client: DeepSeekClient) -> Any:
    """What the legacy client made of an answer that no wire saw: a test has put something in the place of `requests`.

    The client has logged what it swallowed. If it has logged nothing, it was answered, and with nothing.
    """
    exchange, swallowed = attempt.exchange, attempt.exchange.swallowed
    if isinstance(
        swallowed, (LookupError, json.JSONDecodeError, requests.JSONDecodeError)
    ):  # by reading a reply
        raise BadReply("The API answered with something that is not a completion.") from swallowed
    if isinstance(swallowed, (requests.RequestException, OSError)):
        exchange.error = swallowed
        response = getattr(swallowed, "response", None)
        if isinstance(response, requests.Response):
            exchange.response, exchange.body = response, response.content
        raise _failure_of(exchange, client.api_key) or failure_from(swallowed)
    if swallowed is None and _clients_logger.isEnabledFor(logging.ERROR):
        if attempt.call.method == "chat":
            raise BadReply("The API answered with blank content.", is_completion=True)
        return attempt.result
    raise ConnectionFailed(
        "Nothing was sent: the client failed before it reached the network."
    ) from swallowed


def _note_swallowed(record: logging.LogRecord) -> bool:
    """Keeps what the legacy client logs of a failure that the wire has not seen; lets every record pass."""
    exchange = current()
    if exchange is not None and exchange.requests == 0 and exchange.swallowed is None:
        errors = [each for each in record.args or () if isinstance(each, Exception)]
        exchange.swallowed = errors[0] if errors else None
    return True


_clients_logger.addFilter(_note_swallowed)


def _why_it_cannot_send(client: Any) -> DeepSeekError | None:
    key, base_url = getattr(client, "api_key", None), getattr(client, "base_url", None)
    if isinstance(key, str) and not re.fullmatch("[!-~]+", key):
        return ConfigError("Nothing was sent: the API key is missing or has characters that no key has.")
    if isinstance(base_url, str) and not re.match("https?://[^/]", base_url):
        return ConfigError("Nothing was sent: the base URL is not an address.")
    return None


def _theirs(attempt: Attempt, completion: Any, key: str) -> Any:
    """What another client than the legacy one made of a reply with status 2xx: its own affair, but for an error.

    One that made nothing of a reply without an answer has failed, whatever it says.
    """
    if isinstance(completion, dict) and "choices" not in completion:
        words = _words_of(completion)
        if words is not None:
            raise _error_under_200(attempt.exchange, completion, _masked(words, key))
    try:
        reason = completion["choices"][0]["finish_reason"]
    except (LookupError, TypeError):
        reason = ""
    attempt.finish_reason = reason if isinstance(reason, str) else ""
    if (
        _is_empty(attempt.result)
        and attempt.exchange.body is not None
        and not _may_be_empty(attempt, completion)
    ):
        _content_of(attempt, completion, key)
    return attempt.result


def _is_empty(result: Any) -> bool:
    """Whether it is what clients give that swallow a failure, and give no dictionary for an answer."""
    return result is None or (isinstance(result, str) and not result.strip())


def _may_be_empty(attempt: Attempt, completion: Any) -> bool:
    """Whether a reply is no text by its own words: it calls tools, or is a stream that the client has read."""
    response = attempt.exchange.response
    if response is not None and "event-stream" in response.headers.get("Content-Type", ""):
        return True
    try:
        return bool(completion["choices"][0]["message"].get("tool_calls"))
    except (LookupError, TypeError, AttributeError):
        return False


def _is_blank(result: Any, blank: dict[str, Any]) -> bool:
    if isinstance(result, dict) and result.keys() == blank.keys() == {"text"}:
        return not (isinstance(result["text"], str) and result["text"].strip())
    return bool(result == blank)


def _failure_of(exchange: Exchange, key: str) -> DeepSeekError | None:
    """The failure that the wire shows; None if a reply with status 2xx arrived whole, or if nothing was sent."""
    if exchange.aborted is not None or (exchange.error is not None and exchange.is_late()):
        return failure_of_end(exchange)
    response = exchange.response
    if response is not None and not 200 <= response.status_code < 300:
        body = _json_of(exchange)
        if not 400 <= response.status_code < 600 and exchange.redirect is None and _has_choices(body):
            return None  # to `requests`, and so to the client, only 4xx and 5xx are failures
        words = _words_of(body)
        failure = failure_of_status(
            response.status_code,
            response.headers,
            is_apis_own=words is not None or not _is_somebody_elses(exchange, body),
            api_message=_masked(words or _gateways_words(body) or response.reason or "", key),
        )
        failure.__cause__ = exchange.error
        return failure
    return None if exchange.error is None else failure_from(exchange.error)


def _has_choices(body: Any) -> bool:
    return isinstance(body, dict) and bool(body.get("choices"))


def _json_of(exchange: Exchange) -> Any:
    """The reply's body as `requests` reads it, which is how the client read it; None when it is not JSON."""
    if exchange.response is None or not exchange.body:
        return None
    try:
        body = exchange.response.json()
    except (ValueError, RecursionError):
        return None
    # Google's door to the same API puts an error, and nothing else, into a list.
    is_error = isinstance(body, list) and len(body) == 1 and isinstance(body[0], dict) and "error" in body[0]
    return body[0] if is_error else body


def _words_of(body: Any) -> str | None:
    """What the API itself says of a failure; None if it is not the API that speaks: an empty `error` says nothing."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):
        return error or None
    return _text_of(error) if error and isinstance(error, dict) else None


def _gateways_words(body: Any) -> str:
    """What a gateway says of a failure in JSON of its own; "" without any. Of lists only what no prompt can be in."""
    if not isinstance(body, dict):
        return ""
    words = [
        body.get(name) for name in ("message", "msg", "detail", "error_msg", "error_description", "title")
    ]
    found = next((each for each in words if each and isinstance(each, (str, list))), "")
    if isinstance(found, str):
        return found
    return "; ".join(str(each["msg"]) for each in found if isinstance(each, dict) and "msg" in each)


def _text_of(error: dict[str, Any]) -> str:
    message = error.get("message")
    return message if isinstance(message, str) else json.dumps(error, ensure_ascii=False)


def _is_somebody_elses(exchange: Exchange, body: Any) -> bool:
    """Whether a gateway has answered in the API's place: by a page or a text, or by JSON that knows no `error`."""
    if exchange.response is None or not (exchange.body or b"").strip():
        return False
    media_type = exchange.response.headers.get("Content-Type", "application/json")
    return "json" not in media_type.lower() or isinstance(body, (dict, list))


def _masked(words: str, key: str) -> str:
    """The API's words for a log: cut, on one line that a terminal shows, and without the key, which a 401 quotes."""
    words = printable(" ".join(words[: 4 * _API_MESSAGE_LIMIT].split()))
    if len(key) >= 8:
        words = words.replace(key, "***")
    words = re.sub(r"sk-[\w-]{8,}", "***", words)
    words = re.sub(r"(?i)\b(api[ _-]?key\s*[:=]\s*)\S+", r"\1***", words)
    return words if len(words) <= _API_MESSAGE_LIMIT else words[: _API_MESSAGE_LIMIT - 3] + "..."


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a parse result; null stays null, as the legacy client has it.

    Raises:
        BadReply: a field is of another type ("no" as `allowed` would count as true), or is nothing that JSON can carry.
    """
    for name, value in blank_result("parse").items():
        if fields[name] is not None and type(fields[name]) is not type(value):
            raise BadReply(
                f"The API answered with an object whose {name} is of the wrong type.", is_completion=True
            )
    level: list[Any] = [fields["slots"]]
    for _ in range(_DEPTH_LIMIT):
        if any(isinstance(value, float) and not math.isfinite(value) for value in level):
            raise BadReply("The API answered with a number that is not finite.", is_completion=True)
        level = [*_inside_of(level)]
        if not level:
            return fields
    raise BadReply("The API answered with an object that is nested too deeply.", is_completion=True)


def _inside_of(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list):
            yield from value


def _content_of(attempt: Attempt, completion: Any, key: str) -> str:
    """The text of a completion that arrived with status 2xx; notes why the model ended it.

    Raises:
        DeepSeekError: the body is an error object that has a number of its own.
        BadReply: the body is blank, cut, not a completion, without text, or was ended early by the server.
    """
    exchange = attempt.exchange
    if not (exchange.body or b"").strip():
        raise BadReply("The API answered 200 with a blank body.")
    if not isinstance(completion, dict):
        raise BadReply("The API answered 200 with something that is not a JSON object.")
    if not completion.get("choices") and (
        (words := _words_of(completion)) is not None or _number_of(completion) is not None
    ):
        raise _error_under_200(exchange, completion, _masked(words or _text_of(completion), key))
    try:
        choice = completion["choices"][0]
        content, finish_reason = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        _check_choice(exchange, completion, key)
        raise BadReply("The API answered 200 without a choice that holds a message.") from None
    attempt.finish_reason = finish_reason if isinstance(finish_reason, str) else ""
    if finish_reason == "insufficient_system_resource":
        raise BadReply("The API cut its answer short for lack of resources.")
    if isinstance(content, list):  # the API's schema allows a list of parts
        parts = [
            part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"
        ]
        content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str) or not content.strip():
        _check_choice(exchange, completion, key)
        raise BadReply("The API answered 200 with blank content.", is_completion=True)
    return content


def _check_choice(exchange: Exchange, completion: Any, key: str) -> None:
    """Raises the error that stands in the choice's place: a router had sent status 200 before its provider failed."""
    choices = completion.get("choices")
    words = _words_of(choices[0]) if choices and isinstance(choices, list) else None
    if words is not None:
        raise _error_under_200(exchange, choices[0], _masked(words, key))


def _error_under_200(exchange: Exchange, body: dict[str, Any], api_message: str) -> DeepSeekError:
    """An error under status 200, by the number in its object, or else by the one beside it, which is a gateway's."""
    number = _number_of(body.get("error"))
    is_apis_own = number is not None
    if number is None:
        number = _number_of(body)
    if number is not None and exchange.response is not None:
        return failure_of_status(
            number, exchange.response.headers, is_apis_own=is_apis_own, api_message=api_message
        )
    return BadReply("The API answered 200 with an error.", api_message=api_message)


def _number_of(error: Any) -> int | None:
    """The status that an error object names; None if it has no number from 400 to 599."""
    names = _NUMBERS if isinstance(error, dict) else ()
    for number in (error.get(name) for name in names):
        if isinstance(number, (int, str)) and re.fullmatch("[45][0-9][0-9]", str(number)):
            return int(number)
    return None
