"""Models that the API no longer accepts go out under their successor."""

from __future__ import annotations

import functools
import json
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .settings import is_loopback

if TYPE_CHECKING:
    import requests

__all__ = ["RETIRED", "with_successor"]

_logger = logging.getLogger(__name__)

# Source: the vendor retired these names on 2026-07-24; each was DeepSeek V4 Flash, without and with thinking.
_SUCCESSOR = "deepseek-flash"
RETIRED = {"deepseek-chat": "disabled", "deepseek-reasoner": "enabled"}
_HOST = "deepseek.com"
# How json.dumps begins a body with a retired model, and how it begins and ends it with the successor.
_ENDS = {
    model: (
        f'{{"model": "{model}", '.encode(),
        f'{{"model": "{_SUCCESSOR}", '.encode(),
        f', "thinking": {{"type": "{thinking}"}}}}'.encode(),
    )
    for model, thinking in RETIRED.items()
}
_told: set[str] = set()  # retired models whose replacement was logged


def with_successor(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """The request, or a copy in which a retired model is replaced by what it was; logged once for each model.

    Only requests to DeepSeek's hosts, and to this machine, where the sandbox is, are looked at: another provider may
    serve a model of the same name.

    Threads: any.
    """
    if not _is_for_deepseek(request.url or ""):
        return request
    body = request.body.encode() if isinstance(request.body, str) else request.body
    if not isinstance(body, bytes) or (b"deepseek-chat" not in body and b"deepseek-reasoner" not in body):
        return request
    try:
        fields = json.loads(body)
    except ValueError:
        return request
    model = fields.get("model") if isinstance(fields, dict) else None
    if not isinstance(model, str) or model not in RETIRED:
        return request
    if model not in _told:
        _told.add(model)
        _logger.warning(
            "model %s is retired: it goes out as %s with thinking %s", model, _SUCCESSOR, RETIRED[model]
        )
    request = _copy_of(request)
    request.body = body = _replaced(body, fields, model)
    request.headers["Content-Length"] = str(len(body))
    return request


def _replaced(body: bytes, fields: dict[str, Any], model: str) -> bytes:
    """The body with the successor of the model, as json.dumps writes it."""
    begin, new_begin, new_end = _ENDS[model]
    # Most bodies were written by json.dumps, the model first: what stays as it is need not be written again.
    is_usual = body.startswith(begin) and body.endswith(b"}") and body.count(b'"model"') == 1
    if is_usual and "thinking" not in fields:
        return b"".join((new_begin, body[len(begin) : -1], new_end))
    fields["model"] = _SUCCESSOR
    fields.setdefault("thinking", {"type": RETIRED[model]})
    return json.dumps(fields).encode()


def _copy_of(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """A copy whose body and fields may be changed; PreparedRequest.copy takes fields and cookies one by one."""
    import requests  # here: who only names the models needs none of it

    kind, kind_of_fields = requests.PreparedRequest, requests.structures.CaseInsensitiveDict
    if type(request) is not kind or type(request.headers) is not kind_of_fields:
        return request.copy()
    twin = kind()
    vars(twin).update(vars(request))
    twin.headers = kind_of_fields()
    twin.headers._store = request.headers._store.copy()  # type: ignore[attr-defined]
    return twin


@functools.lru_cache(maxsize=100)
def _is_for_deepseek(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.path.endswith("/chat/completions") and (
        host == _HOST or host.endswith(f".{_HOST}") or is_loopback(host)
    )
