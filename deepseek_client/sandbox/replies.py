"""The body of a success: content, thinking, tokens and usage."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from uuid import uuid4

from .chat_request import ChatRequest
from .game.rules import is_parse_prompt, parse_reply
from .refusals import CURRENT_MODELS

__all__ = ["MODELS_BODY", "PromptCache", "chunked", "completion", "count_tokens", "encoded"]

_FINGERPRINT = "fp_sandbox"
_ECHO_CHARS = 2000
_CHUNK_CHARS = 4
_CACHE_UNIT_TOKENS = 64
_CACHE_PROMPTS = 4096
_CJK = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")
_REASONING_TOKENS = {"low": 256, "high": 512, "max": 1024}
_REASONING_SENTENCE = "先想清楚对方问的是什么再答。沙盒其实没有思考，"
_REASONING = {
    effort: (_REASONING_SENTENCE * (tokens // len(_REASONING_SENTENCE) + 1))[:tokens]
    for effort, tokens in _REASONING_TOKENS.items()
}
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class PromptCache:
    """Which prompts were seen before, for the cache figures of `usage`.

    The API caches prefixes in units of 64 tokens; here only a whole context that was seen before is a hit,
    and of it the full units.

    Threads: only the event loop's thread.
    """

    def __init__(self) -> None:
        self._seen: dict[int, None] = {}

    def clear(self) -> None:
        """Forget every prompt."""
        self._seen.clear()

    def hit_tokens(self, context: str, tokens: int) -> int:
        """How many of the context's `tokens` are a cache hit; the context counts as seen from now on."""
        if tokens < _CACHE_UNIT_TOKENS:
            return 0
        key = hash(context)
        if key in self._seen:
            return tokens // _CACHE_UNIT_TOKENS * _CACHE_UNIT_TOKENS
        if len(self._seen) >= _CACHE_PROMPTS:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = None
        return 0


def count_tokens(text: str) -> int:
    """About one token for a CJK character and one for four others."""
    wide = 0 if text.isascii() else len(_CJK.findall(text))
    return wide + (len(text) - wide + 3) // 4


def completion(chat: ChatRequest, cache: PromptCache) -> dict[str, Any]:
    """The ``chat.completion`` object that answers `chat`.

    Reasoning comes first and counts against `max_tokens`, so a small limit leaves the content blank.
    """
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    reasoning_tokens = 0
    left = chat.max_tokens
    if chat.effort is not None:
        reasoning, reasoning_tokens = _fitted(_REASONING[chat.effort], left)
        message["reasoning_content"] = reasoning
        if left is not None:
            left -= reasoning_tokens
    whole = _content(chat)
    message["content"], content_tokens = _fitted(whole, left)
    finish_reason = "stop" if len(message["content"]) == len(whole) else "length"
    if chat.tool is not None:
        message["content"], finish_reason = "", "tool_calls"
        function = {"name": chat.tool, "arguments": "{}"}
        message["tool_calls"] = [{"id": f"call_{uuid4()}", "type": "function", "function": function}]
    return {
        "id": str(uuid4()),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": chat.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
        "usage": _usage(chat, cache, reasoning_tokens, content_tokens),
        "system_fingerprint": _FINGERPRINT,
    }


def chunked(reply: dict[str, Any], *, has_usage: bool) -> list[bytes]:
    """The events of a stream that says what a ``chat.completion`` does, the last one ``[DONE]``."""
    choice, usage = reply["choices"][0], reply["usage"]
    message = choice["message"]
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    for name in ("reasoning_content", "content"):
        text = message.get(name) or ""
        pieces = [text[start : start + _CHUNK_CHARS] for start in range(0, len(text), _CHUNK_CHARS)]
        deltas += [({name: piece}, None) for piece in pieces]
    if "tool_calls" in message:
        calls = [{"index": index, **call} for index, call in enumerate(message["tool_calls"])]
        deltas.append(({"tool_calls": calls}, None))
    deltas.append(({"content": ""}, choice["finish_reason"]))
    kept = ("id", "created", "model", "system_fingerprint")
    same = {name: reply[name] for name in kept} | {"object": "chat.completion.chunk"}
    chunks: list[dict[str, Any]] = [
        {**same, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
        for delta, reason in deltas
    ]
    if has_usage:
        chunks = [{**chunk, "usage": None} for chunk in chunks] + [{**same, "choices": [], "usage": usage}]
    return [*(b"data: " + encoded(chunk) + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"]


def encoded(reply: dict[str, Any]) -> bytes:
    """The JSON bytes of a reply; a lone surrogate, which a prompt may hold, becomes "?"."""
    return _encode(reply).encode("utf-8", "replace")


def _content(chat: ChatRequest) -> str:
    if is_parse_prompt(chat.prompt):
        return json.dumps(parse_reply(chat.prompt), ensure_ascii=False)
    prompt = chat.prompt if len(chat.prompt) <= _ECHO_CHARS else chat.prompt[:_ECHO_CHARS] + "……"
    content = f"沙盒已收到：「{prompt}」"
    # The canned text is never a JSON object, so in JSON mode it comes as the API sends such output.
    return " " * len(content) if chat.json_mode else content


def _fitted(text: str, limit: int | None) -> tuple[str, int]:
    tokens = count_tokens(text)
    if limit is None or tokens <= limit:
        return text, tokens
    quarters_left = limit * 4
    for index, character in enumerate(text):
        quarters_left -= 4 if _CJK.match(character) else 1
        if quarters_left < 0:
            return text[:index], limit
    return text, limit


def _usage(
    chat: ChatRequest, cache: PromptCache, reasoning_tokens: int, content_tokens: int
) -> dict[str, Any]:
    prompt_tokens = max(1, count_tokens(chat.context))
    hit_tokens = cache.hit_tokens(chat.context, prompt_tokens)
    completion_tokens = reasoning_tokens + content_tokens
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": hit_tokens},
        "prompt_cache_hit_tokens": hit_tokens,
        "prompt_cache_miss_tokens": prompt_tokens - hit_tokens,
    }
    if chat.effort is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return usage


MODELS_BODY = encoded(
    {
        "object": "list",
        "data": [{"id": name, "object": "model", "owned_by": "deepseek"} for name in CURRENT_MODELS],
    }
)
