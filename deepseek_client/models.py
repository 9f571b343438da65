"""Models that the API no longer accepts go out under their successor."""

from __future__ import annotations

import json
import logging
from urllib.parse import urlsplit

import requests

__all__ = ["RETIRED", "with_successor"]

_logger = logging.getLogger(__name__)

# Source: the vendor retired these names on 2026-07-24; each was DeepSeek V4 Flash, without and with thinking.
_SUCCESSOR = "deepseek-flash"
RETIRED = {"deepseek-chat": "disabled", "deepseek-reasoner": "enabled"}
_told: set[str] = set()  # retired models whose replacement was logged


def with_successor(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """The request, or a copy in which a retired model is replaced by what it was; logged once for each model.

    Threads: any.
    """
    if not urlsplit(request.url or "").path.endswith("/chat/completions"):
        return request
    body = request.body.encode() if isinstance(request.body, str) else request.body
    if not isinstance(body, bytes) or not any(name.encode() in body for name in RETIRED):
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
    fields["model"] = _SUCCESSOR
    fields.setdefault("thinking", {"type": RETIRED[model]})
    request = request.copy()
    request.body = json.dumps(fields).encode()
    request.headers["Content-Length"] = str(len(request.body))
    return request
