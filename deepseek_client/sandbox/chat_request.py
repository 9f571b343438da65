"""Reading a completion request: what a reply needs of it, or the refusal that it earns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .refusals import Refusal, unsupported_model

__all__ = ["ChatRequest", "read_chat", "read_chat_leniently"]

_MODELS = frozenset({"deepseek-flash", "deepseek-v4-pro", "deepseek-v4-flash"})
_ROLES = ("system", "user", "assistant", "tool")
_EFFORTS = ("low", "high", "max")
_FORMATS = ("text", "json_object")
_STOPS_LIMIT = 16


class ChatRequest(NamedTuple):
    """A completion request that was understood.

    Args:
        prompt: the last user message.
        context: all messages as one text; what the prompt's tokens and the cache are reckoned from.
        effort: None when thinking is off.
        max_tokens: None when the request sets no limit.
        json_mode: content that is not a JSON object is to be blanked.
        is_streamed: the reply goes out in chunks.
        has_usage: the chunks of a stream end with one that counts the tokens.
        tool: name of the function that the model must call; None when it may answer.
    """

    model: str
    prompt: str
    context: str
    effort: str | None
    max_tokens: int | None
    json_mode: bool
    is_streamed: bool = False
    has_usage: bool = False
    tool: str | None = None


def read_chat(body: bytes) -> ChatRequest:
    """Read and check the body of a completion request.

    Raises:
        Refusal: 400 for format, model and thinking, 422 for a parameter of the wrong type or range.
    """
    payload = _payload(body)
    model = payload.get("model")
    if not isinstance(model, str):
        raise Refusal(400, "missing field `model`" if model is None else f"model: {model!r} is not a string")
    if model not in _MODELS:
        raise unsupported_model(model)
    prompt, context = _read_messages(payload.get("messages"))
    effort = _read_effort(payload)
    json_mode = _read_json_mode(payload.get("response_format"))
    for name, value in payload.items():
        check = _PARAMETERS.get(name)
        if check is not None and value is not None:
            check(name, value)
    is_streamed = bool(payload.get("stream"))
    return ChatRequest(
        model, prompt, context, effort, payload.get("max_tokens"), json_mode, is_streamed,
        _read_stream_options(payload.get("stream_options"), is_streamed), _read_tool(payload)
    )  # fmt: skip


def read_chat_leniently(body: bytes) -> ChatRequest:
    """Read what can be read, for a scripted reply that is due whatever was asked; it refuses nothing."""
    try:
        return read_chat(body)
    except Refusal:
        pass
    try:
        payload = _payload(body)
    except Refusal:
        payload = {}
    model = payload.get("model")
    messages = payload.get("messages")
    texts = [
        message["content"]
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict) and isinstance(message.get("content"), str)
    ]
    prompt = texts[-1] if texts else ""
    return ChatRequest(
        model if isinstance(model, str) else "deepseek-flash", prompt, "\n".join(texts), None, None, False,
        payload.get("stream") is True
    )  # fmt: skip


def _payload(body: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise Refusal(400, f"Failed to parse the request body as JSON: {exc}") from exc
    if not isinstance(payload, dict):
        raise Refusal(
            400, f"Failed to parse the request body: need a JSON object, got {type(payload).__name__}"
        )
    return payload


def _read_messages(messages: object) -> tuple[str, str]:
    if messages is None:
        raise Refusal(400, "missing field `messages`")
    if not isinstance(messages, list):
        raise Refusal(400, f"messages: need a list, got {type(messages).__name__}")
    if not messages:
        raise Refusal(400, "Empty input messages")
    texts: list[str] = []
    prompt: str | None = None
    for index, message in enumerate(messages):
        role, content = _read_message(index, message)
        texts.append(content)
        if role == "user":
            prompt = content
    return (texts[-1] if prompt is None else prompt), "\n".join(texts)


def _read_message(index: int, message: object) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise Refusal(400, f"messages[{index}]: need an object, got {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if role is None:
        raise Refusal(400, f"messages[{index}]: missing field `role`")
    if role not in _ROLES:
        known = ", ".join(f"`{name}`" for name in _ROLES)
        raise Refusal(400, f"messages[{index}].role: unknown variant `{role}`, expected one of {known}")
    if content is None and role == "assistant":
        return role, ""
    if not isinstance(content, str):
        raise Refusal(400, f"messages[{index}].content: need a string, got {type(content).__name__}")
    return role, content


def _read_effort(payload: Mapping[str, Any]) -> str | None:
    effort = payload.get("reasoning_effort")
    if effort is None:
        effort = "high"
    elif effort not in _EFFORTS:
        raise Refusal(
            400, f"reasoning_effort: unknown variant `{effort}`, expected one of {', '.join(_EFFORTS)}"
        )
    thinking = payload.get("thinking")
    if thinking is None:
        return str(effort)
    kind = thinking.get("type") if isinstance(thinking, dict) else thinking
    if not isinstance(thinking, dict) or kind not in ("enabled", "disabled"):
        raise Refusal(400, f"thinking.type: unknown variant `{kind}`, expected `enabled` or `disabled`")
    return str(effort) if kind == "enabled" else None


def _read_json_mode(response_format: object) -> bool:
    if response_format is None:
        return False
    kind = response_format.get("type") if isinstance(response_format, dict) else response_format
    if not isinstance(response_format, dict) or kind not in _FORMATS:
        raise Refusal(
            400, f"response_format.type: unknown variant `{kind}`, expected one of {', '.join(_FORMATS)}"
        )
    return kind == "json_object"


def _read_stream_options(options: object, is_streamed: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict) or not isinstance(options.get("include_usage", False), bool):
        raise Refusal(400, "stream_options: need an object with include_usage, true or false")
    if not is_streamed:
        raise Refusal(400, "stream_options should be set along with stream = true")
    return bool(options.get("include_usage"))


def _read_tool(payload: Mapping[str, Any]) -> str | None:
    """The function that must be called; the sandbox leaves it at an answer where the model may choose."""
    tools, choice = payload.get("tools"), payload.get("tool_choice")
    names = [_tool_name(index, tool) for index, tool in enumerate(tools)] if isinstance(tools, list) else []
    if tools is not None and not names:
        raise Refusal(400, "tools: need a list of at least one tool")
    if choice in (None, "none", "auto"):
        return None
    wanted = choice.get("function") if isinstance(choice, dict) else None
    if isinstance(wanted, dict) and wanted.get("name") in names:
        return str(wanted["name"])
    if choice == "required" and names:
        return names[0]
    raise Refusal(400, f"tool_choice: {choice!r:.80} is none of `none`, `auto`, `required` and the tools")


def _tool_name(index: int, tool: object) -> str:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise Refusal(400, f"tools[{index}]: missing field `function.name`")
    return name


def _number(low: float, high: float) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise Refusal(
                422, f"Invalid {name} value {value!r}, the valid range of {name} is [{low}, {high}]"
            )

    return check


def _whole(low: int, high: int | None) -> Callable[[str, object], None]:
    need = f"a whole number of at least {low}" if high is None else f"a whole number in [{low}, {high}]"

    def check(name: str, value: object) -> None:
        if type(value) is not int or value < low or (high is not None and value > high):
            raise Refusal(422, f"Invalid {name} value {value!r}, need {need}")

    return check


def _boolean(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise Refusal(422, f"Invalid {name} value {value!r}, need true or false")


def _stops(name: str, value: object) -> None:
    stops = value if isinstance(value, list) else [value]
    if len(stops) > _STOPS_LIMIT or not all(isinstance(stop, str) for stop in stops):
        raise Refusal(
            422, f"Invalid {name} value {value!r}, need a string or a list of up to {_STOPS_LIMIT} strings"
        )


_PARAMETERS: Mapping[str, Callable[[str, object], None]] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "max_tokens": _whole(1, None),
    "n": _whole(1, 1),
    "top_logprobs": _whole(0, 20),
    "stream": _boolean,
    "logprobs": _boolean,
    "stop": _stops,
}
