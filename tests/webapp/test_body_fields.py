"""The fields of a body: what each must be, how large, and what a wrong one is told."""

import bisect

import pytest
from support.routes import CHATS, PARSES, over, table

from deepseek_client import Settings
from webapp.app import create_app

NOT_A_TEXT = {
    "null": ("null", "null"),
    "number": ("17", "17"),
    "float": ("1.5", "1.5"),
    "true": ("true", "true"),
    "list": ('["hello"]', '["hello"]'),
    "object": ('{"text": "hello"}', '{"text": "hello"}'),
    "nan": ("NaN", "NaN"),
    "infinity": ("1e999", "Infinity"),
    "long_integer": ("9" * 4000, "9" * 40 + "..."),
}
NEED_PROMPT = "need a text of 1 to 20000 characters."
NO_TEXT = {
    "missing": ("{}", "{name} is missing: " + NEED_PROMPT),
    "blank": ('{"NAME": ""}', "{name} is blank: " + NEED_PROMPT),
    "white": ('{"NAME": " \\n\\t\\u3000"}', "{name} is blank: " + NEED_PROMPT),
    "too_long": (
        '{"NAME": "' + "长" * 20_001 + '"}',
        "{name} has 20001 characters: need at most 20000.",
    ),
    "half_pair_first": (
        '{"NAME": "a\\ud83db"}',
        "{name} holds half of a surrogate pair: need valid Unicode.",
    ),
    "half_pair_last": ('{"NAME": "\\udca9"}', "{name} holds half of a surrogate pair: need valid Unicode."),
    **{
        f"is_{kind}": (
            '{"NAME": ' + sent + "}",
            f"{{name}} is {shown.replace('{', '{{').replace('}', '}}')}: need a text.",
        )
        for kind, (sent, shown) in NOT_A_TEXT.items()
    },
}
LAW_SHAPE = 'need an object with "code" and "enabled".'
WRONG_CONTEXT = {
    "list": ([], "context is []: need an object."),
    "string": ("主城", 'context is "\\u4e3b\\u57ce": need an object.'),
    "false": (False, "context is false: need an object."),
    "zero": (0, "context is 0: need an object."),
    "scene_number": ({"scene": 1}, "context.scene is 1: need a text."),
    "scene_list": ({"scene": ["主"]}, 'context.scene is ["\\u4e3b"]: need a text.'),
    "scene_long": ({"scene": "x" * 20_001}, "context.scene has 20001 characters: need at most 20000."),
    "law_half_pair": (
        {"laws": [{"code": "\ud800"}]},
        "context.laws[0].code holds half of a surrogate pair: need valid Unicode.",
    ),
    "scene_half_pair": (
        {"scene": "\ud800"},
        "context.scene holds half of a surrogate pair: need valid Unicode.",
    ),
    "target_realm_true": ({"target_realm": True}, "context.target_realm is true: need a text."),
    "target_realm_long": (
        {"target_realm": "x" * 20_001},
        "context.target_realm has 20001 characters: need at most 20000.",
    ),
    "player_string": ({"player": "炼气"}, 'context.player is "\\u70bc\\u6c14": need an object.'),
    "player_list": ({"player": []}, "context.player is []: need an object."),
    "realm_number": ({"player": {"realm": 3}}, "context.player.realm is 3: need a text."),
    "realm_long": (
        {"player": {"realm": "x" * 20_001}},
        "context.player.realm has 20001 characters: need at most 20000.",
    ),
    "laws_object": ({"laws": {}}, "context.laws is {}: need a list."),
    "laws_string": ({"laws": "FORBIDDEN_ARTS"}, 'context.laws is "FORBIDDEN_ARTS": need a list.'),
    "laws_false": ({"laws": False}, "context.laws is false: need a list."),
    "law_string": ({"laws": ["X"]}, f'context.laws[0] is "X": {LAW_SHAPE}'),
    "law_null": ({"laws": [{"code": "X"}, None]}, f"context.laws[1] is null: {LAW_SHAPE}"),
    "law_without_code": (
        {"laws": [{"enabled": True}]},
        f'context.laws[0] is {{"enabled": true}}: {LAW_SHAPE}',
    ),
    "law_code_number": ({"laws": [{"code": 1}]}, f'context.laws[0] is {{"code": 1}}: {LAW_SHAPE}'),
    "law_enabled_number": (
        {"laws": [{"code": "X", "enabled": 1}]},
        "context.laws[0].enabled is 1: need true or false.",
    ),
    "law_enabled_null": (
        {"laws": [{"code": "X", "enabled": None}]},
        "context.laws[0].enabled is null: need true or false.",
    ),
}
WRONG_BATCH = {
    "missing": ({}, 'requests is missing: need a list such as [{"prompt": "..."}].'),
    "prompt_instead": ({"prompt": "x"}, 'requests is missing: need a list such as [{"prompt": "..."}].'),
    "null": ({"requests": None}, "requests is null: need a list."),
    "string": ({"requests": "x"}, 'requests is "x": need a list.'),
    "object": ({"requests": {"prompt": "x"}}, 'requests is {"prompt": "x"}: need a list.'),
    "number": ({"requests": 5}, "requests is 5: need a list."),
    "empty": ({"requests": []}, "requests is an empty list: need 1 to 100 entries."),
    "over": ({"requests": [{"prompt": "x"}] * 101}, "requests has 101 entries: need at most 100."),
    "over_and_wrong": ({"requests": [None] * 5000}, "requests has 5000 entries: need at most 100."),
}
WRONG_FLAG = {
    "string": ('"yes"', '"yes"'),
    "false_string": ('"false"', '"false"'),
    "one": ("1", "1"),
    "zero": ("0", "0"),
    "null": ("null", "null"),
    "list": ("[]", "[]"),
    "nan": ("NaN", "NaN"),
}


def name_of(route):
    """What the route calls its text."""
    return "utterance" if route in PARSES else "prompt"


@over([*CHATS, *PARSES])
@pytest.mark.parametrize(("body", "message"), table(NO_TEXT))
def test_text_is_missing_or_wrong(refused, route, body, message):
    """A prompt or utterance that is missing, blank, too long or not a text is a 400 that names it."""
    refused(route, body.replace("NAME", name_of(route)), message.format(name=name_of(route)))


@pytest.mark.parametrize("use_async", ["1", "0"], ids=["async_enabled", "async_disabled"])
@over(CHATS[:2])
@pytest.mark.parametrize(("sent", "shown"), table(WRONG_FLAG))
def test_async_is_not_a_boolean(sandbox, route, sent, shown, use_async):
    """`async` takes JSON's true and false and nothing else, also while USE_ASYNC_DEEPSEEK is 0."""
    env = {"USE_ASYNC_DEEPSEEK": use_async, "DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}
    client = create_app(Settings.from_env(env)).test_client()
    answer = client.open(route[1], method=route[0], data=f'{{"prompt": "x", "async": {sent}}}')
    message = f"async is {shown}: need true or false."
    assert answer.get_json() == {"error": message, "code": "invalid_request", "text": ""}
    assert (answer.status_code, sandbox.stats()["requests"]) == (400, 0)


@over(PARSES)
@pytest.mark.parametrize(("context", "message"), table(WRONG_CONTEXT))
def test_context_is_wrong(refused, route, context, message):
    """A context of the wrong shape is a 400 that gives the path of the wrong value."""
    refused(route, {"utterance": "打开背包", "context": context}, message)


@pytest.mark.parametrize(("body", "message"), table(WRONG_BATCH))
def test_batch_is_wrong(refused, body, message):
    """A batch that is not a list of 1 to LLM_BATCH_LIMIT entries is a 400 as a whole."""
    refused(("POST", "/api/llm/batch"), body, message)


@pytest.mark.parametrize(("body", "message"), table(NO_TEXT))
def test_batch_entry_is_wrong(client, body, message):
    """A wrong entry of a batch fails alone, with the message that its prompt would get on the chat route."""
    entry = body.replace("NAME", "prompt")
    answer = client.post("/api/llm/batch", data=f'{{"requests": [{{"prompt": "甲"}}, {entry}]}}')
    assert answer.status_code == 200
    assert answer.get_json()["results"] == [
        {"text": "沙盒已收到：「甲」", "success": True},
        {"error": message.format(name="prompt"), "code": "invalid_request", "success": False},
    ]


@pytest.mark.parametrize("entry", ["null", '"x"', "17", "[]", "NaN", "true"])
def test_batch_entry_is_not_an_object(client, entry):
    """An entry of a batch that is not an object fails alone and says what is needed."""
    answer = client.post("/api/llm/batch", data=f'{{"requests": [{entry}]}}')
    assert answer.status_code == 200
    assert answer.get_json() == {
        "results": [
            {
                "error": 'The entry is not an object: need {"prompt": "..."}.',
                "code": "invalid_request",
                "success": False,
            }
        ],
        "total": 1,
        "successful": 0,
        "failed": 1,
    }


@over([*CHATS, *PARSES])
def test_nesting_just_below_the_limit(client, route):
    """A value that is nested as deeply as the decoder can bear is a 400 too, although a message repeats it."""

    def answer_at(depth):
        body = f'{{"{name_of(route)}": {"[" * depth}{"]" * depth}}}'
        return client.open(route[1], method=route[0], data=body)

    def is_refused_as_too_deep(depth):
        return "nested too deeply" in answer_at(depth).get_json()["error"]

    limit = bisect.bisect_left(range(100_000), True, key=is_refused_as_too_deep)
    statuses = {depth: answer_at(depth).status_code for depth in range(limit - 12, limit + 3)}
    assert statuses == dict.fromkeys(statuses, 400)


def test_deep_context_of_a_parse(client):
    """A law that is nested as deeply as the decoder can bear is a 400 too."""
    statuses = set()
    for depth in range(800, 1000):
        laws = "[" * depth + "]" * depth
        answer = client.post("/api/llm/parse", data=f'{{"utterance": "x", "context": {{"laws": [{laws}]}}}}')
        statuses.add(answer.status_code)
    assert statuses == {400}


@over(CHATS)
def test_prompt_at_the_limit(client, sandbox, route):
    """A prompt of exactly LLM_PROMPT_LIMIT characters goes out whole, surrogate pairs counted as one."""
    prompt = "💡" * 20_000
    answer = client.open(route[1], method=route[0], json={"prompt": prompt})
    assert answer.status_code == 200
    assert sandbox.stats()["last_request_body"]["messages"][-1]["content"] == prompt


@pytest.mark.parametrize(
    ("name", "value", "path", "body", "message"),
    [
        pytest.param(
            "LLM_PROMPT_LIMIT", "3", "chat", {"prompt": "四个字符"},
            "prompt has 4 characters: need at most 3.", id="prompt",
        ),
        pytest.param(
            "LLM_PROMPT_LIMIT", "3", "parse", {"utterance": "四个字符"},
            "utterance has 4 characters: need at most 3.", id="utterance",
        ),
        pytest.param(
            "LLM_BATCH_LIMIT", "1", "batch", {"requests": [{}, {}]},
            "requests has 2 entries: need at most 1.", id="batch",
        ),
    ],
)  # fmt: skip
def test_limits_are_settings(name, value, path, body, message):
    """LLM_PROMPT_LIMIT and LLM_BATCH_LIMIT move the limits, and the messages with them."""
    client = create_app(Settings.from_env({name: value})).test_client()
    answer = client.post(f"/api/llm/{path}", json=body)
    assert (answer.status_code, answer.get_json()["error"]) == (400, message)
