import json
import logging
from types import SimpleNamespace

import pytest
import requests
import responses

from deepseek_client import DeepSeekClient

ENDPOINT = "https://api.deepseek.com/v1/chat/completions"
KEY = "sk-legacy-zqxw"
LOGGER = "deepseek_client.client"
UNKNOWN = {"intent": "unknown", "slots": {}, "allowed": True, "reason": ""}
BAD_KEY_BODY = {"error": {"message": f"Authentication Fails, Your api key: ****{KEY[-4:]} is invalid"}}

# What breaks a request itself, so that `_call_openai` raises: the reply, and the exception.
BROKEN_REQUESTS = {
    "bad-request": ({"status": 400, "json": {}}, requests.HTTPError),
    "bad-key": ({"status": 401, "json": BAD_KEY_BODY}, requests.HTTPError),
    "no-balance": ({"status": 402, "json": {}}, requests.HTTPError),
    "rate-limited": ({"status": 429, "json": {}}, requests.HTTPError),
    "server-error": ({"status": 500, "body": "oops"}, requests.HTTPError),
    "unavailable": ({"status": 503, "body": ""}, requests.HTTPError),
    "not-json": ({"body": "<html>"}, requests.JSONDecodeError),
    "blank-body": ({"body": "\n\n"}, requests.JSONDecodeError),
    "refused": ({"body": requests.ConnectionError("refused")}, requests.ConnectionError),
    "timeout": ({"body": requests.ReadTimeout("read timed out")}, requests.ReadTimeout),
}

# Replies that arrive whole and are no completion.
USELESS_REPLIES = {
    "no-choices": {"id": "1"},
    "empty-choices": {"choices": []},
    "null-choices": {"choices": None},
    "no-message": {"choices": [{"finish_reason": "stop"}]},
    "no-content": {"choices": [{"message": {"role": "assistant"}}]},
    "a-list": [1, 2],
}
FAILURES = {name: reply for name, (reply, _) in BROKEN_REQUESTS.items()}
FAILURES.update({name: {"json": body} for name, body in USELESS_REPLIES.items()})

each_failure = pytest.mark.parametrize("reply", FAILURES.values(), ids=FAILURES)
each_broken_request = pytest.mark.parametrize(
    ("reply", "kind"), BROKEN_REQUESTS.values(), ids=BROKEN_REQUESTS
)


@pytest.fixture
def api():
    """The network; a request that no test registered is refused."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as api:
        yield api


@pytest.fixture
def client():
    """A client with a key."""
    return DeepSeekClient(KEY)


def completion(content):
    """The API's reply with this content."""
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}


def prompt_sent(api):
    """The user's message of the last request."""
    return json.loads(api.calls[-1].request.body)["messages"][1]["content"]


def prompt_of_parse(api, client, utterance, ctx):
    """The prompt that `parse` sends, as its five filled lines by label."""
    api.post(ENDPOINT, json=completion("{}"))
    client.parse(utterance, ctx)
    lines = prompt_sent(api).splitlines()[2:7]
    return dict(line.split("：", 1) for line in lines)


def own_records(caplog):
    """What the legacy client logged: level, message."""
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == LOGGER]


def test_request_is_the_documented_one(api, client):
    """A call is one POST with the key, the model, two messages, temperature 0.7 and at most 200 tokens."""
    api.post(ENDPOINT, json=completion("你好"))
    client.chat("测试提示词 7")
    request = api.calls[0].request
    assert (len(api.calls), request.method, request.url) == (1, "POST", ENDPOINT)
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.body) == {
        "model": "deepseek-chat",
        "messages": [
            {"role": "system", "content": "You are a helpful game AI assistant."},
            {"role": "user", "content": "测试提示词 7"},
        ],
        "temperature": 0.7,
        "max_tokens": 200,
    }


def test_request_waits_ten_seconds_for_a_read(api, client):
    """The timeout that reaches the wire is 10 s; nothing else of the transport is changed."""
    api.post(ENDPOINT, json=completion("你好"))
    client.chat("你好")
    sent = api.calls[0].request.req_kwargs
    assert (sent["timeout"], sent["stream"], sent["verify"]) == (10, False, True)


def test_request_goes_through_the_module_level_post(monkeypatch, client):
    """The client calls `requests.post`, looked up at each call, with exactly these arguments."""
    calls = []

    def post(*args, **kwargs):
        calls.append((args, sorted(kwargs), kwargs["timeout"]))
        raise requests.ConnectionError("stop here")

    monkeypatch.setattr(requests, "post", post)
    client.chat("你好")
    assert calls == [((ENDPOINT,), ["headers", "json", "timeout"], 10)]


def test_model_is_sent_as_it_is(api):
    """The client does not know which models exist."""
    api.post(ENDPOINT, json=completion("你好"))
    DeepSeekClient(KEY, model="deepseek-v4-pro").chat("你好")
    assert json.loads(api.calls[0].request.body)["model"] == "deepseek-v4-pro"


def test_attributes_are_read_at_each_call(api, client):
    """`base_url`, `api_key` and `model` may be set after construction."""
    client.base_url, client.api_key, client.model = "http://127.0.0.1:9/beta", "sk-other", "deepseek-flash"
    api.post("http://127.0.0.1:9/beta/chat/completions", json=completion("你好"))
    assert client.chat("你好") == {"text": "你好"}
    request = api.calls[0].request
    assert request.headers["Authorization"] == "Bearer sk-other"
    assert json.loads(request.body)["model"] == "deepseek-flash"


def test_defaults():
    """Without arguments: no key, deepseek-chat, the API's address with /v1."""
    client = DeepSeekClient()
    assert (client.api_key, client.model) == ("", "deepseek-chat")
    assert client.base_url == "https://api.deepseek.com/v1"


@pytest.mark.parametrize(
    ("argument", "variable", "key"),
    [
        pytest.param("sk-a", None, "sk-a", id="argument"),
        pytest.param("", "sk-e", "sk-e", id="variable"),
        pytest.param("sk-a", "sk-e", "sk-a", id="argument-before-variable"),
    ],
)
def test_key_comes_from_the_argument_or_the_variable(monkeypatch, caplog, argument, variable, key):
    """An empty key falls back to DEEPSEEK_API_KEY; a key that is there is not worth a warning."""
    if variable is not None:
        monkeypatch.setenv("DEEPSEEK_API_KEY", variable)
    assert DeepSeekClient(argument).api_key == key
    assert own_records(caplog) == []


def test_missing_key_is_one_warning(caplog):
    """Building a client without a key succeeds and warns once."""
    DeepSeekClient()
    assert own_records(caplog) == [("WARNING", "DEEPSEEK_API_KEY is not set: every call will fail")]


def test_call_without_key_raises_and_sends_nothing(api):
    """`_call_openai` raises ValueError before anything is sent."""
    with pytest.raises(ValueError, match=r"^API key not configured$"):
        DeepSeekClient()._call_openai("你好")
    assert len(api.calls) == 0


@pytest.mark.parametrize(
    ("call", "result"),
    [
        pytest.param(lambda client: client.chat("你好"), {"text": ""}, id="chat"),
        pytest.param(lambda client: client.parse("你好", {}), UNKNOWN, id="parse"),
    ],
)
def test_public_methods_swallow_the_missing_key(api, call, result):
    """Without a key chat and parse return what every failure returns, and send nothing."""
    assert call(DeepSeekClient()) == result
    assert len(api.calls) == 0


@pytest.mark.parametrize("content", ["你好", "", '{"a": 1}', " \n"], ids=["text", "empty", "json", "blank"])
def test_chat_returns_the_content(api, client, content):
    """A chat gives the first choice's content as it is."""
    api.post(ENDPOINT, json=completion(content))
    assert client.chat("你好") == {"text": content}


@each_failure
def test_chat_swallows_and_logs_every_failure(api, client, caplog, reply):
    """A failed chat is {"text": ""} and an error in the log, never an exception."""
    api.post(ENDPOINT, **reply)
    assert client.chat("你好") == {"text": ""}
    level, message = own_records(caplog)[-1]
    assert level == "ERROR"
    assert message.startswith("chat failed: ")


def test_parse_returns_the_four_fields(api, client):
    """A parse gives the four fields of the JSON object in the content, and no other."""
    answer = {"intent": "attack", "slots": {"target": "妖兽"}, "allowed": False, "reason": "使用禁术不允许"}
    api.post(ENDPOINT, json=completion(json.dumps({**answer, "mood": "angry"})))
    assert client.parse("我用禁术攻击妖兽", {}) == answer


@pytest.mark.parametrize("name", UNKNOWN)
def test_parse_fills_a_missing_field(api, client, name):
    """A field that the model left out has the value that it has after a failure; the others stay."""
    answer = {"intent": "talk", "slots": {"target": "长老"}, "allowed": False, "reason": "不可"}
    given = {key: value for key, value in answer.items() if key != name}
    api.post(ENDPOINT, json=completion(json.dumps(given)))
    assert client.parse("你好", {}) == {**answer, name: UNKNOWN[name]}


@each_failure
def test_parse_swallows_and_logs_every_failure(api, client, caplog, reply):
    """A failed parse is intent "unknown", allowed, and an error in the log, never an exception."""
    api.post(ENDPOINT, **reply)
    assert client.parse("你好", {}) == UNKNOWN
    level, message = own_records(caplog)[-1]
    assert level == "ERROR"
    assert message.startswith("parse failed: ")


@pytest.mark.parametrize("content", ["", "好的", "[]", "null", '```json\n{"intent": "talk"}\n```'])
def test_parse_swallows_content_that_is_no_json_object(api, client, caplog, content):
    """The content must be a bare JSON object; anything else is a logged failure."""
    api.post(ENDPOINT, json=completion(content))
    assert client.parse("你好", {}) == UNKNOWN
    assert own_records(caplog)[-1][1].startswith("parse failed: ")


def test_parse_swallows_an_utterance_that_is_no_text(api, client):
    """Also a failure before the request is swallowed; nothing is sent."""
    assert client.parse(None, {}) == UNKNOWN
    assert len(api.calls) == 0


@each_broken_request
def test_call_raises_what_broke_the_request(api, client, caplog, reply, kind):
    """`_call_openai` logs what `requests` raised and raises it again."""
    api.post(ENDPOINT, **reply)
    with pytest.raises(kind) as caught:
        client._call_openai("你好")
    assert own_records(caplog) == [("ERROR", f"DeepSeek request failed: {caught.value}")]


def test_call_returns_the_whole_reply(api, client):
    """`_call_openai` gives the reply's JSON, unchecked."""
    api.post(ENDPOINT, json={"id": "1", "anything": [1]})
    assert client._call_openai("你好") == {"id": "1", "anything": [1]}


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


def test_verbose_logs_prompt_and_reply(monkeypatch, api, client, caplog):
    """DEEPSEEK_VERBOSE=1 logs the prompt and the whole reply at DEBUG."""
    monkeypatch.setenv("DEEPSEEK_VERBOSE", "1")
    caplog.set_level(logging.DEBUG, LOGGER)
    api.post(ENDPOINT, json=completion("再见"))
    client.chat("你好")
    assert own_records(caplog) == [("DEBUG", "prompt: 你好"), ("DEBUG", f"reply: {completion('再见')}")]


@pytest.mark.parametrize("value", [None, "0", ""], ids=["unset", "0", "blank"])
def test_without_verbose_no_prompt_is_logged(monkeypatch, api, client, caplog, value):
    """Neither prompt nor reply reaches the log, at any level, unless it was asked for."""
    if value is not None:
        monkeypatch.setenv("DEEPSEEK_VERBOSE", value)
    caplog.set_level(logging.DEBUG, LOGGER)
    api.post(ENDPOINT, json=completion("再见"))
    client.chat("你好")
    assert own_records(caplog) == []
    assert "你好" not in caplog.text
    assert "再见" not in caplog.text


@pytest.mark.parametrize(
    "reply", [{"json": completion("好")}, *FAILURES.values()], ids=["success", *FAILURES]
)
def test_key_is_in_no_log_record(monkeypatch, api, client, caplog, reply):
    """Not even DEEPSEEK_VERBOSE=1 at DEBUG logs the key or its tail, however a call ends."""
    monkeypatch.setenv("DEEPSEEK_VERBOSE", "1")
    caplog.set_level(logging.DEBUG, LOGGER)
    api.post(ENDPOINT, **reply)
    client.chat("你好")
    client.parse("你好", {})
    assert own_records(caplog) != []
    assert KEY[-4:] not in caplog.text


@pytest.mark.parametrize(
    "key", [f"{KEY}\n", f"{KEY}\r\n", f"sk-\n{KEY}"], ids=["newline-after", "crlf-after", "newline-inside"]
)
def test_key_that_no_header_can_carry_is_in_no_log_record(api, caplog, key):
    """A key from a file, with its line end, fails the call without being logged."""
    api.post(ENDPOINT, json=completion("好"))
    DeepSeekClient(key).chat("你好")
    assert KEY[-4:] not in caplog.text
