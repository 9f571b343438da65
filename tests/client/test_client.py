"""The legacy client: its request, what it returns, what it swallows, and what it logs."""

import json
import logging

import pytest
import requests
from support.legacy import ENDPOINT, KEY, completion

from deepseek_client import DeepSeekClient

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
