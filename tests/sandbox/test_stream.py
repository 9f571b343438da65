"""The sandbox's streams and tool calls, as the API's."""

import json

import pytest
import requests
from asking import KEY, ask, choice, error, payload
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import SandboxConfig, running

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("weather", "time")
]


def events(response):
    """The data of a stream's events."""
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    lines = [line for line in response.content.decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def chunks(response):
    """The chunks of a complete stream."""
    *data, done = events(response)
    assert done == "[DONE]"
    return [json.loads(text) for text in data]


def text_of(parts, name="content"):
    """What the deltas say together."""
    return "".join(part["choices"][0]["delta"].get(name, "") for part in parts if part["choices"])


def test_a_stream_says_what_a_reply_says(sandbox, http_):
    """The deltas of a stream are the content of the reply that is not streamed, in pieces."""
    whole = choice(ask(http_, sandbox, "测试提示词 7"))["message"]["content"]
    parts = chunks(ask(http_, sandbox, "测试提示词 7", stream=True))
    assert text_of(parts) == whole
    assert len(parts) > 4
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert len({part["id"] for part in parts}) == 1


def test_a_thinking_model_streams_its_thoughts_first(sandbox, http_):
    """The deltas of the reasoning come before those of the content."""
    parts = chunks(ask(http_, sandbox, thinking={"type": "enabled"}, stream=True))
    deltas = [part["choices"][0]["delta"] for part in parts[1:-1]]
    assert text_of(parts, "reasoning_content") != ""
    assert [*dict.fromkeys(name for delta in deltas for name in delta)] == ["reasoning_content", "content"]


def test_usage_comes_last_when_it_is_asked_for(sandbox, http_):
    """With include_usage one more chunk counts the tokens, and has no choice."""
    *parts, last = chunks(ask(http_, sandbox, stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] > 0
    assert {part["usage"] for part in parts} == {None}


def test_a_slow_stream_is_kept_alive_by_comments(http_):
    """While a stream waits it sends comments, which are no data."""
    with running(SandboxConfig(port=0, latency_ms=100, blank_line_every_s=0.03)) as box:
        lines = ask(http_, box, stream=True).text.split("\n\n")
    assert lines[0] == ": keep-alive"
    assert lines[-2] == "data: [DONE]"


@pytest.mark.parametrize("fault", ["cut_body", "reset_in_body"])
def test_a_stream_that_breaks_off(sandbox, http_, fault):
    """A fault of the wire lets the first half of the events through."""
    sandbox.script([{"fault": fault}])
    with pytest.raises(requests.RequestException):
        ask(http_, sandbox, stream=True)


def test_a_scripted_text_is_streamed(sandbox, http_):
    """A reply whose content is scripted goes out in chunks, too."""
    sandbox.script([{"fault": "content", "text": "一二三四五六", "finish_reason": "length"}])
    parts = chunks(ask(http_, sandbox, stream=True))
    assert text_of(parts) == "一二三四五六"
    assert parts[-1]["choices"][0]["finish_reason"] == "length"


def test_a_refusal_is_no_stream(sandbox, http_):
    """A request that is refused gets the status and the body of any refusal."""
    assert ask(http_, sandbox, key="", stream=True).status_code == 401


def test_a_client_that_leaves_ends_its_stream(sandbox):
    """A stream counts as in flight until its client has gone."""
    sandbox.script([{"fault": "hang_in_body"}])
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{sandbox.url}/chat/completions"
    response = requests.post(url, json=payload(stream=True), headers=headers, stream=True, timeout=GIVE_UP_S)
    assert sandbox.stats()["in_flight"] == 1
    response.close()
    sandbox.wait_until(lambda stats: stats["in_flight"] == 0, GIVE_UP_S)


@pytest.mark.parametrize(
    ("tool_choice", "name"),
    [("required", "weather"), ({"type": "function", "function": {"name": "time"}}, "time")],
    ids=["any", "named"],
)
def test_a_tool_that_must_be_called_is_called(sandbox, http_, tool_choice, name):
    """With a tool that is required the reply calls it, whole or in a stream."""
    reply = choice(ask(http_, sandbox, tools=TOOLS, tool_choice=tool_choice))
    [call] = reply["message"]["tool_calls"]
    assert (call["function"], reply["finish_reason"]) == ({"name": name, "arguments": "{}"}, "tool_calls")
    parts = chunks(ask(http_, sandbox, tools=TOOLS, tool_choice=tool_choice, stream=True))
    [delta] = [part["choices"][0]["delta"] for part in parts if "tool_calls" in part["choices"][0]["delta"]]
    assert (delta["tool_calls"][0]["function"]["name"], delta["tool_calls"][0]["index"]) == (name, 0)
    assert parts[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("tool_choice", [..., "auto", "none"])
def test_a_tool_that_may_be_called_is_not(sandbox, http_, tool_choice):
    """Where the model may choose, the sandbox answers."""
    assert choice(ask(http_, sandbox, tools=TOOLS, tool_choice=tool_choice))["message"]["content"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"stream_options": {"include_usage": True}},
            "stream_options should be set along with stream = true",
        ),
        ({"stream": True, "stream_options": 7}, "stream_options"),
        ({"tools": []}, "tools"),
        ({"tools": "weather"}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "nothing"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
    ids=["usage-alone", "options", "no-tools", "text", "nameless", "unknown-tool", "required-alone"],
)
def test_a_bad_stream_or_tool_is_refused(sandbox, http_, changes, said):
    """What is malformed is refused with 400, and the message names it."""
    response = ask(http_, sandbox, **changes)
    assert response.status_code == 400
    assert said in error(response)["message"]
