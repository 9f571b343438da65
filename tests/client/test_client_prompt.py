"""The prompt that the legacy client's `parse` sends: what the context fills in, and what the laws say."""

import json
from types import SimpleNamespace

import pytest
from support.legacy import ENDPOINT, completion


def prompt_sent(api):
    """The user's message of the last request."""
    return json.loads(api.calls[-1].request.body)["messages"][1]["content"]


def prompt_of_parse(api, client, utterance, ctx):
    """The prompt that `parse` sends, as its five filled lines by label."""
    api.post(ENDPOINT, json=completion("{}"))
    client.parse(utterance, ctx)
    lines = prompt_sent(api).splitlines()[2:7]
    return dict(line.split("：", 1) for line in lines)


FULL = {
    "scene": "秘境",
    "player": {"realm": "金丹"},
    "target_realm": "化神",
    "laws": [{"code": "FORBIDDEN_ARTS", "enabled": True}],
}
FULL_PROMPT = {
    "场景": "秘境",
    "玩家境界": "金丹",
    "目标境界": "化神",
    "世界法则": "禁止使用禁术",
    "玩家输入": "攻击",
}
DEFAULT_PROMPT = {
    "场景": "主城",
    "玩家境界": "炼气期",
    "目标境界": "未知",
    "世界法则": "无特殊限制",
    "玩家输入": "攻击",
}


def as_attributes(value):
    """The same context as objects with attributes."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_attributes(item) for name, item in value.items()})
    return [as_attributes(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("ctx", "prompt"),
    [
        pytest.param(FULL, FULL_PROMPT, id="full-keys"),
        pytest.param(as_attributes(FULL), FULL_PROMPT, id="full-attributes"),
        pytest.param(SimpleNamespace(**FULL), FULL_PROMPT, id="attributes-over-keys"),
        pytest.param({}, DEFAULT_PROMPT, id="no-keys"),
        pytest.param(SimpleNamespace(), DEFAULT_PROMPT, id="no-attributes"),
        pytest.param(None, DEFAULT_PROMPT, id="none"),
        pytest.param(dict.fromkeys(FULL), DEFAULT_PROMPT, id="none-values"),
        pytest.param(SimpleNamespace(**dict.fromkeys(FULL)), DEFAULT_PROMPT, id="none-attributes"),
        pytest.param(
            {"scene": "", "player": {"realm": ""}, "target_realm": "", "laws": []},
            DEFAULT_PROMPT,
            id="blank-values",
        ),
        pytest.param({"player": {}}, DEFAULT_PROMPT, id="player-without-realm"),
        pytest.param({"scene": "秘境"}, {**DEFAULT_PROMPT, "场景": "秘境"}, id="scene-only"),
    ],
)
def test_prompt_of_parse_holds_the_context(api, client, ctx, prompt):
    """The context fills four lines, from attributes or keys; what is missing or blank takes its default."""
    assert prompt_of_parse(api, client, "攻击", ctx) == prompt


def test_prompt_of_parse_asks_for_a_json_object(api, client):
    """The prompt names the four fields, shows an empty object as {}, and states both rules."""
    prompt_of_parse(api, client, "攻击", {})
    prompt = prompt_sent(api)
    for part in ("JSON", "intent", "slots", "allowed", "reason", "没有则为 {}", "两个大境界", "禁术不允许"):
        assert part in prompt


@pytest.mark.parametrize("length", [0, 1, 199, 200, 201, 5000])
def test_prompt_of_parse_cuts_the_utterance(api, client, length):
    """The first 200 characters of the utterance are sent."""
    utterance = "".join(chr(0x4E00 + place) for place in range(length))
    assert prompt_of_parse(api, client, utterance, {})["玩家输入"] == utterance[:200]


@pytest.mark.parametrize("text", ["{", "}", "{}", "{scene}", "{0}", "{{x}}", "%s {utterance!r}", "{'a': 1}"])
def test_prompt_of_parse_keeps_braces(api, client, text):
    """Braces in what a player typed, or in the context, are text and not fields."""
    prompt = prompt_of_parse(api, client, text, {"scene": text})
    assert (prompt["玩家输入"], prompt["场景"]) == (text, text)


def law(code, **more):
    """A law as a deployment's context has it."""
    return {"code": code, **more}


@pytest.mark.parametrize(
    ("laws", "summary"),
    [
        pytest.param(None, "无特殊限制", id="none"),
        pytest.param([], "无特殊限制", id="empty"),
        pytest.param([law("CROSS_REALM_KILL", enabled=True)], "禁止跨境界斩杀", id="cross-realm"),
        pytest.param([law("FORBIDDEN_ARTS", enabled=True)], "禁止使用禁术", id="forbidden-arts"),
        pytest.param([law("REALM_BREAKTHROUGH", enabled=True)], "突破需渡劫", id="breakthrough"),
        pytest.param([law("FORBIDDEN_ARTS")], "禁止使用禁术", id="enabled-unless-told"),
        pytest.param([law("FORBIDDEN_ARTS", enabled=False)], "无特殊限制", id="disabled"),
        pytest.param([law("RAIN", enabled=True)], "无特殊限制", id="unknown"),
        pytest.param([{}], "无特殊限制", id="no-code"),
        pytest.param(
            [law("REALM_BREAKTHROUGH"), law("FORBIDDEN_ARTS", enabled=False), law("CROSS_REALM_KILL")],
            "突破需渡劫；禁止跨境界斩杀",
            id="order-kept",
        ),
    ],
)
@pytest.mark.parametrize("shape", [lambda laws: laws, as_attributes], ids=["keys", "attributes"])
def test_summary_of_the_laws(client, laws, summary, shape):
    """The enabled laws that are known, in their order, joined by ；; none is 无特殊限制."""
    assert client._summarize_laws(shape(laws)) == summary
