"""Attempts that have run, as the wire would leave them, and what a failed one means for the legacy client."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from requests.utils import get_encoding_from_headers

from deepseek_client import DeepSeekClient, DeepSeekError
from deepseek_client.answers import outcome_of
from deepseek_client.calls.call import Attempt, Call
from deepseek_client.wire.exchange import Exchange

CLIENT = DeepSeekClient("sk-test")


def finished(
    method: str = "chat",
    result: Any = None,
    raised: Exception | None = None,
    *,
    status: int | None = None,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    deadline: float | None = None,
    **wire: Any,
) -> Attempt:
    """An attempt that has run, as the wire would leave it."""
    exchange = Exchange(deadline)
    exchange.requests = 1 if wire or status else 0
    exchange.path = "/v1/chat/completions"
    exchange.body = body
    if status is not None:
        exchange.response = response = requests.Response()
        response.status_code, response._content = status, body or b""
        response.headers.update(headers or {})
        response.encoding = get_encoding_from_headers(response.headers)
    for name, value in wire.items():
        setattr(exchange, name, value)
    attempt = Attempt(None, Call(method, (), {}, 0.0, 0.0), exchange)
    attempt.result, attempt.raised = result, raised
    return attempt


def failure_of(attempt: Attempt) -> DeepSeekError:
    """What a failed attempt is."""
    with pytest.raises(DeepSeekError) as caught:
        outcome_of(attempt, CLIENT)
    return caught.value


def completion(content: Any, finish_reason: str = "stop", **more: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice], **more}).encode()
