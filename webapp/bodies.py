"""Bodies: JSON in, checked values out; what is wrong is named, with its value and what is needed."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

from flask import Request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout

from deepseek_client import InvalidRequest
from deepseek_client.flask import has_body_come_too_slowly

__all__ = [
    "BODY_LIMIT_BYTES",
    "ReadableJson",
    "entries_in",
    "flag_in",
    "object_from",
    "parse_input_in",
    "prompt_in",
]

_logger = logging.getLogger(__name__)

BODY_LIMIT_BYTES = 1024 * 1024
_TOO_SLOW = "The body came too slowly: send it faster, or a smaller one."
_SHOWN = 40  # characters of a wrong value that a message repeats


class ReadableJson(DefaultJSONProvider):
    """Answers Chinese as Chinese, in the order in which a view built its object.

    Threads: stateless.
    """

    ensure_ascii = False
    sort_keys = False

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """The object as JSON text that UTF-8 can carry."""
        text = super().dumps(obj, **kwargs)
        try:
            text.encode()
        except UnicodeEncodeError:  # a model's text cut in the middle of a surrogate pair
            text = super().dumps(obj, **{**kwargs, "ensure_ascii": True})
        return text


def object_from(request: Request) -> dict[str, Any]:
    """The JSON object in the request's body, whatever its Content-Type says.

    Raises:
        InvalidRequest: it is empty, not UTF-8, not JSON or not an object.
        RequestEntityTooLarge: it is larger than BODY_LIMIT_BYTES.
        RequestTimeout: it comes too slowly.
    """
    raw = _whole_body(request)
    if not raw.strip():
        raise InvalidRequest('The body is empty: need a JSON object such as {"prompt": "..."}.')
    try:
        body = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"The body is not UTF-8: byte {exc.start} cannot be decoded.") from exc
    except json.JSONDecodeError as exc:
        raise InvalidRequest(f"The body is not JSON: {exc}.") from exc
    except RecursionError as exc:
        raise InvalidRequest("The body is not usable JSON: it is nested too deeply.") from exc
    except ValueError as exc:  # Python's limit for int()
        raise InvalidRequest("The body is not usable JSON: a number in it has too many digits.") from exc
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body is {_shown(body)}: need a JSON object.")
    return body


def _whole_body(request: Request) -> bytes:
    if request.content_encoding not in (None, "", "identity"):
        raise InvalidRequest(f"The body is compressed ({request.content_encoding:.20}): need it plain.")
    refusals = (RequestEntityTooLarge,) if request.content_length is None else (HTTPException,)
    try:
        raw = request.get_data(cache=False)
    except refusals:
        raise
    except Exception as exc:  # each server and version has its own for chunks that are not well formed
        if has_body_come_too_slowly(request.environ):
            raise RequestTimeout(_TOO_SLOW) from exc
        # Its text and its traceback may repeat the body.
        _logger.warning("a body cannot be read: %s", type(exc).__name__)
        raise InvalidRequest("The body cannot be read: its chunks are malformed.") from exc
    if has_body_come_too_slowly(request.environ):
        raise RequestTimeout(_TOO_SLOW)
    if request.content_length is not None and len(raw) < request.content_length:
        raise InvalidRequest(f"The body ended after {len(raw)} of {request.content_length} bytes.")
    if len(raw) > BODY_LIMIT_BYTES:
        raise RequestEntityTooLarge
    return raw


def prompt_in(body: dict[str, Any], limit: int, name: str = "prompt") -> str:
    """The text under `name`, at most `limit` characters."""
    if name not in body:
        raise InvalidRequest(f"{name} is missing: need a text of 1 to {limit} characters.")
    value = _text(body[name], name, limit)
    if not value.strip():
        raise InvalidRequest(f"{name} is blank: need a text of 1 to {limit} characters.")
    return value


def flag_in(body: dict[str, Any], name: str, default: bool) -> bool:
    """The JSON boolean under `name`, `default` if it is absent."""
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is {_shown(value)}: need true or false.")
    return value


def entries_in(body: dict[str, Any], batch_limit: int) -> list[Any]:
    """The entries under "requests", as they are: one bad entry must not spoil the others."""
    if "requests" not in body:
        raise InvalidRequest('requests is missing: need a list such as [{"prompt": "..."}].')
    requests = body["requests"]
    if not isinstance(requests, list):
        raise InvalidRequest(f"requests is {_shown(requests)}: need a list.")
    if not requests:
        raise InvalidRequest(f"requests is an empty list: need 1 to {batch_limit} entries.")
    if len(requests) > batch_limit:
        raise InvalidRequest(f"requests has {len(requests)} entries: need at most {batch_limit}.")
    return requests


def parse_input_in(body: dict[str, Any], limit: int) -> tuple[str, SimpleNamespace]:
    """The utterance, and the context as the object with attributes that the legacy client reads."""
    context = _optional(body, "context", dict, "an object")
    player = _optional(context, "player", dict, "an object", "context.")
    laws = _optional(context, "laws", list, "a list", "context.")
    return prompt_in(body, limit, "utterance"), SimpleNamespace(
        scene=_text(context.get("scene"), "context.scene", limit),
        player=SimpleNamespace(realm=_text(player.get("realm"), "context.player.realm", limit)),
        target_realm=_text(context.get("target_realm"), "context.target_realm", limit),
        laws=[_law(law, f"context.laws[{place}]", limit) for place, law in enumerate(laws)],
    )


def _law(law: Any, path: str, limit: int) -> SimpleNamespace:
    if not isinstance(law, dict) or not isinstance(law.get("code"), str):
        raise InvalidRequest(f'{path} is {_shown(law)}: need an object with "code" and "enabled".')
    if not isinstance(law.get("enabled", True), bool):
        raise InvalidRequest(f"{path}.enabled is {_shown(law['enabled'])}: need true or false.")
    return SimpleNamespace(code=_text(law["code"], f"{path}.code", limit), enabled=law.get("enabled", True))


def _optional(body: dict[str, Any], name: str, kind: type, needed: str, prefix: str = "") -> Any:
    value = body.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InvalidRequest(f"{prefix}{name} is {_shown(value)}: need {needed}.")
    return value


def _text(value: Any, path: str, limit: int) -> str:
    """The text itself, None as "": the legacy client has a default for each blank field of the context."""
    if value is None and path.startswith("context."):
        return ""
    if not isinstance(value, str):
        raise InvalidRequest(f"{path} is {_shown(value)}: need a text.")
    if len(value) > limit:
        raise InvalidRequest(f"{path} has {len(value)} characters: need at most {limit}.")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidRequest(f"{path} holds half of a surrogate pair: need valid Unicode.")
    return value


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:  # it came in just below the limit
        text = "nested deeply"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
