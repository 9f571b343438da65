"""The game's routes to the LLM: /api/llm/*."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flask import Blueprint, current_app, request

from deepseek_client import AsyncDeepSeekClient, BadReply, DeepSeekError, InvalidRequest, Settings

from ..answers import problem_of
from ..bodies import entries_in, flag_in, object_from, parse_input_in, prompt_in

__all__ = ["llm"]

llm = Blueprint("llm", __name__, url_prefix="/api/llm")


@llm.route("/chat", methods=["GET", "POST"])
def chat() -> dict[str, Any]:
    body = object_from(request)
    prompt = prompt_in(body, _settings().prompt_limit)
    if flag_in(body, "async", True) and _settings().use_async:
        return {**_on_loop(_client().chat_async)(prompt), "mode": "async"}
    return {**_client().chat(prompt), "mode": "sync"}


@llm.post("/chat/sync")
def chat_sync() -> dict[str, Any]:
    return _client().chat(prompt_in(object_from(request), _settings().prompt_limit))


@llm.post("/parse")
def parse() -> dict[str, Any]:
    utterance, context = parse_input_in(object_from(request), _settings().prompt_limit)
    answer = _on_loop(_client().parse_async) if _settings().use_async else _client().parse
    result: dict[str, Any] = answer(utterance, context)
    return result


@llm.post("/parse/sync")
def parse_sync() -> dict[str, Any]:
    return _client().parse(*parse_input_in(object_from(request), _settings().prompt_limit))


@llm.post("/batch")
def batch() -> dict[str, Any]:
    entries = entries_in(object_from(request), _settings().batch_limit)
    outcomes = [_prompt_or_error(entry) for entry in entries]
    prompts = [outcome for outcome in outcomes if isinstance(outcome, str)]
    answers = iter(_on_loop(_chat_many)(prompts) if _settings().use_async else _chat_each(prompts))
    results = [_result(next(answers) if isinstance(outcome, str) else outcome) for outcome in outcomes]
    successful = sum(result["success"] for result in results)
    return {
        "results": results,
        "total": len(results),
        "successful": successful,
        "failed": len(results) - successful,
    }


def _client() -> AsyncDeepSeekClient:
    client: AsyncDeepSeekClient = current_app.extensions["llm_client"]
    return client


def _settings() -> Settings:
    settings: Settings = current_app.extensions["llm_settings"]
    return settings


def _on_loop(func: Callable[..., Any]) -> Callable[..., Any]:
    """A blocking twin of an async function: Flask's own bridge, which SharedLoop carries."""
    return current_app.ensure_sync(func)


async def _chat_many(prompts: list[str]) -> list[Any]:
    # One deadline for all: the web server ends a request that takes much longer.
    return await _client().chat_many_async(prompts, return_exceptions=True, deadline_s=_settings().deadline_s)


def _chat_each(prompts: list[str]) -> list[Any]:
    """The same without pool and loop: one after the other in this thread, within the same deadline."""
    deadline = time.monotonic() + _settings().deadline_s
    answers: list[Any] = []
    for prompt in prompts:
        try:
            answers.append(_client().chat(prompt, deadline_s=max(0.0, deadline - time.monotonic())))
        except DeepSeekError as exc:
            answers.append(exc)
    return answers


def _prompt_or_error(entry: Any) -> str | InvalidRequest:
    try:
        if not isinstance(entry, dict):
            raise InvalidRequest('The entry is not an object: need {"prompt": "..."}.')
        return prompt_in(entry, _settings().prompt_limit)
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
