"""What may come back, and the name of what came: the contract of the HTTP API, written down once more."""

from __future__ import annotations

import json
from typing import Any

from .calls import Call

__all__ = ["CODES", "HUNG_UP", "OK", "WRONG", "group_of", "is_refusal", "outcome_of"]

OK = "ok"
HUNG_UP = "hung_up"
WRONG = "WRONG"
"""Begins the name of what must not come."""

# Those codes of the design's section 6 that this load and these faults can cause. The others would be wrong here:
# there is a key, the API accepts it and has a balance, and nobody shuts the server down.
CODES = {
    "invalid_request": 400,
    "overloaded": 503,
    "deadline_exceeded": 504,
    "circuit_open": 503,
    "upstream_rejected": 502,
    "rate_limited": 503,
    "upstream_unavailable": 502,
    "connection_failed": 502,
    "bad_reply": 502,
}
_REFUSED = {"overloaded", "circuit_open"}
_INVALID = "invalid_request"
_ECHO = "沙盒已收到"
_PARSED = {"intent": str, "slots": dict, "allowed": bool, "reason": str}


def outcome_of(call: Call, status: int, body: bytes) -> str:
    """OK, a code of CODES, or WRONG and why."""
    if call.kind == "probe":
        is_fine = status == 200 or (status == 503 and call.path == "/ready")
        return OK if is_fine else _wrong(call, status, body)
    try:
        answer = json.loads(body)
        if status == 200:
            is_fine = call.kind != "bad" and _is_answer(call, answer)
            return OK if is_fine else _wrong(call, status, body)
        code: str = answer["code"]
        is_known = CODES.get(code) == status and answer["text"] == "" and bool(answer["error"])
    except (ValueError, LookupError, TypeError):
        return _wrong(call, status, body)
    return code if is_known and (code == _INVALID) == (call.kind == "bad") else _wrong(call, status, body)


def group_of(outcome: str) -> str:
    """In which column of the progress line an outcome is counted."""
    if outcome.startswith(WRONG):
        return WRONG
    if is_refusal(outcome):
        return "refused"
    named = {OK: "ok", HUNG_UP: "hung up", _INVALID: "bad body"}
    return named.get(outcome, "failed")


def is_refusal(outcome: str) -> bool:
    """Whether the server refused without trying, at once."""
    return outcome in _REFUSED


def _is_answer(call: Call, answer: dict[str, Any]) -> bool:
    if call.kind == "parse":
        return {name: type(value) for name, value in answer.items()} == _PARSED
    if call.kind == "chat":
        return _is_text_for(call.prompts[0], answer["text"])
    results = answer["results"]
    return (
        len(results) == len(call.prompts) == answer["total"]
        and answer["successful"] + answer["failed"] == answer["total"]
        and all(map(_is_result, call.prompts, results))
    )


def _is_result(prompt: str, result: dict[str, Any]) -> bool:
    if result["success"]:
        return _is_text_for(prompt, result["text"])
    return result["code"] in CODES and result["code"] != _INVALID and bool(result["error"])


def _is_text_for(prompt: str, text: Any) -> bool:
    """Not blank, and no echo of another's prompt; the mark of a prompt is at its beginning, and the echo may be cut."""
    return isinstance(text, str) and bool(text.strip()) and (_ECHO not in text or prompt[:12] in text)


def _wrong(call: Call, status: int, body: bytes) -> str:
    return f"{WRONG} {call.method} {call.path} ({call.kind}): {status} {body[:200].decode(errors='replace')}"
