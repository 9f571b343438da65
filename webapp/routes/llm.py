"""The game's routes to the LLM: /api/llm/*."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request
from werkzeug.exceptions import MethodNotAllowed

from deepseek_client import BadReply, DeepSeekError, InvalidRequest
from deepseek_client.flask import problem_of

from ..bodies import entries_in, flag_in, object_from, parse_input_in, prompt_in
from ..extensions import deepseek

__all__ = ["llm"]

llm = Blueprint("llm", __name__, url_prefix="/api/llm")


@llm.route("/chat", methods=["GET", "POST"])
def chat() -> dict[str, Any]:
    if (
        request.method == "HEAD"
    ):  # Flask gives it to each route with GET; nobody would read the answer of the call
        raise MethodNotAllowed(["GET", "OPTIONS", "POST"])
    body = object_from(request)
    prompt = prompt_in(body, deepseek.settings.prompt_limit)
    if flag_in(body, "async", True) and deepseek.settings.use_async:
        return {**deepseek.wait(deepseek.client.chat_async(prompt)), "mode": "async"}
    return {**deepseek.client.chat(prompt), "mode": "sync"}


@llm.post("/chat/sync")
def chat_sync() -> dict[str, Any]:
    prompt = prompt_in(object_from(request), deepseek.settings.prompt_limit)
    return {**deepseek.client.chat(prompt)}


@llm.post("/parse")
def parse() -> dict[str, Any]:
    utterance, context = parse_input_in(object_from(request), deepseek.settings.prompt_limit)
    return {**deepseek.wait(deepseek.client.parse_async(utterance, context))}


@llm.post("/parse/sync")
def parse_sync() -> dict[str, Any]:
    utterance, context = parse_input_in(object_from(request), deepseek.settings.prompt_limit)
    return {**deepseek.client.parse(utterance, context)}


@llm.post("/batch")
def batch() -> dict[str, Any]:
    entries = entries_in(object_from(request), deepseek.settings.batch_limit)
    outcomes = [_prompt_or_error(entry) for entry in entries]
    prompts = [outcome for outcome in outcomes if isinstance(outcome, str)]
    # One deadline for all: the web server ends a request that takes much longer.
    answers = iter(deepseek.wait(deepseek.client.chat_many_async(
        prompts, return_exceptions=True, deadline_s=deepseek.settings.deadline_s)))  # fmt: skip
    results = [_result(next(answers) if isinstance(outcome, str) else outcome) for outcome in outcomes]
    successful = sum(result["success"] for result in results)
    return {
        "results": results,
        "total": len(results),
        "successful": successful,
        "failed": len(results) - successful,
    }


def _prompt_or_error(entry: Any) -> str | InvalidRequest:
    try:
        if not isinstance(entry, dict):
            raise InvalidRequest('The entry is not an object: need {"prompt": "..."}.')
        return prompt_in(entry, deepseek.settings.prompt_limit)
    except InvalidRequest as exc:
        return exc


def _result(outcome: Any) -> dict[str, Any]:
    if isinstance(outcome, DeepSeekError):
        return {**problem_of(outcome), "success": False}
    if isinstance(outcome, Exception):
        raise outcome  # a defect of ours, not a failure of the call
    if not outcome["text"]:  # DEEPSEEK_TRANSPORT=0: a failure that only its blank shows
        return {"error": "The call failed; see the log.", "code": BadReply.code, "success": False}
    return {"text": outcome["text"], "success": True}
