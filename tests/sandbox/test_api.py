"""The sandbox as an API: replies, thinking, refusals, counts."""

import json
from contextlib import ExitStack

import pytest
import requests
from asking import AN_HOUR_MS, KEY, ask, choice, connect, error, payload, raw_request
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import SandboxConfig, running


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions"])
def test_reply_echoes_the_prompt(sandbox, http_, path):
    """The last user message is found whole in its reply, under both paths, and the model is echoed."""
    messages = [{"role": "system", "content": "系统"}, {"role": "user", "content": "测试提示词 7"}]
    response = ask(http_, sandbox, path=path, messages=messages)
    assert choice(response)["message"]["content"] == "沙盒已收到：「测试提示词 7」"
    assert choice(response)["finish_reason"] == "stop"
    assert response.json()["model"] == "deepseek-flash"
    assert response.json()["system_fingerprint"] == "fp_sandbox"
    assert "Content-Length" in response.headers


@pytest.mark.parametrize("model", ["deepseek-flash", "deepseek-v4-pro", "deepseek-v4-flash"])
def test_current_models_are_accepted(sandbox, http_, model):
    """The two current models and the alias answer under the name that was asked for."""
    assert ask(http_, sandbox, model=model).json()["model"] == model


def test_usage_counts_tokens_and_the_cache(sandbox, http_):
    """A CJK character is a token, four others are one; a context seen before is a hit in units of 64."""
    prompt = "字" * 100 + "word" * 10
    usages = [ask(http_, sandbox, prompt).json()["usage"] for _ in range(2)]
    assert [usage["prompt_cache_hit_tokens"] for usage in usages] == [0, 64]
    assert [usage["prompt_cache_miss_tokens"] for usage in usages] == [110, 46]
    assert usages[1]["prompt_tokens_details"] == {"cached_tokens": 64}
    assert usages[0]["prompt_tokens"] == 110
    assert usages[0]["total_tokens"] == 110 + usages[0]["completion_tokens"]
    assert "completion_tokens_details" not in usages[0]


def test_max_tokens_truncates_content(sandbox, http_):
    """Content stops at max_tokens, and finish_reason says so."""
    response = ask(http_, sandbox, "一二三四五六七八九十", max_tokens=8)
    assert choice(response)["message"]["content"] == "沙盒已收到：「一"
    assert choice(response)["finish_reason"] == "length"
    assert response.json()["usage"]["completion_tokens"] == 8


def test_a_long_prompt_is_echoed_in_part(sandbox, http_):
    """The echo is bounded, so that a prompt of 20,000 characters does not come back whole."""
    assert 2000 <= len(choice(ask(http_, sandbox, "字" * 20000))["message"]["content"]) < 2100


def test_a_lone_surrogate_does_not_break_the_reply(sandbox, http_):
    """A prompt that is valid JSON but no valid text is answered all the same."""
    assert choice(ask(http_, sandbox, "\ud800"))["message"]["content"] == "沙盒已收到：「?」"


@pytest.mark.parametrize("thinking", [..., None, {"type": "enabled"}], ids=["absent", "null", "enabled"])
def test_thinking_eats_max_tokens(sandbox, http_, thinking):
    """Thinking is on by default, and 200 tokens of it leave the content blank with finish_reason length."""
    response = ask(http_, sandbox, thinking=thinking, max_tokens=200, temperature=0.7)
    assert choice(response)["message"]["content"] == ""
    assert choice(response)["finish_reason"] == "length"
    assert choice(response)["message"]["reasoning_content"]
    assert response.json()["usage"]["completion_tokens"] == 200
    assert response.json()["usage"]["completion_tokens_details"] == {"reasoning_tokens": 200}


def test_thinking_leaves_content_when_there_is_room(sandbox, http_):
    """With a big max_tokens the content is there, beside the reasoning."""
    response = ask(http_, sandbox, thinking=..., max_tokens=4000)
    assert choice(response)["message"]["content"] == "沙盒已收到：「测试提示词 7」"
    assert choice(response)["finish_reason"] == "stop"


def test_effort_scales_the_reasoning(sandbox, http_):
    """low, high and max reason more and more; high is the default."""
    usages = [
        ask(http_, sandbox, thinking=..., reasoning_effort=effort).json()["usage"]
        for effort in ("low", "high", "max", ...)
    ]
    low, high, most, default = (usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages)
    assert 200 < low < high < most
    assert default == high


def test_json_mode_blanks_what_is_not_json(sandbox, http_):
    """In JSON mode canned text comes as spaces; the same prompt without it comes as text."""
    content = choice(ask(http_, sandbox, response_format={"type": "json_object"}))["message"]["content"]
    assert content
    assert content.isspace()
    assert choice(ask(http_, sandbox, response_format={"type": "text"}))["message"]["content"].strip()


def test_json_mode_leaves_a_parse_reply(sandbox, http_):
    """A parse reply is JSON and passes JSON mode unchanged."""
    prompt = "玩家输入：攻击妖兽\n\n输出字段："
    content = choice(ask(http_, sandbox, prompt, response_format={"type": "json_object"}))["message"][
        "content"
    ]
    assert json.loads(content)["intent"] == "attack"


@pytest.mark.parametrize("model", ["deepseek-chat", "deepseek-reasoner", "gpt-5"])
def test_retired_and_unknown_models_are_refused(sandbox, http_, model):
    """A model that is not current is refused with 400 in the API's words."""
    response = ask(http_, sandbox, model=model)
    assert response.status_code == 400
    assert error(response)["type"] == error(response)["code"] == "invalid_request_error"
    assert error(response)["message"] == (
        f"The supported API model names are deepseek-flash, deepseek-v4-pro, but you passed {model}."
    )


@pytest.mark.parametrize(
    ("key", "tail"), [("", "****"), ("sk-wrong_KEY", "****_KEY")], ids=["missing", "wrong"]
)
def test_a_wrong_key_is_refused(http_, key, tail):
    """401 carries the key's tail, and invalid_request_error as its code although its type is another."""
    with running(SandboxConfig(port=0, latency_ms=0, api_key="sk-right")) as sandbox:
        response = ask(http_, sandbox, key=key)
        assert response.status_code == 401
        assert error(response) == {
            "message": f"Authentication Fails, Your api key: {tail} is invalid",
            "type": "authentication_error",
            "param": None,
            "code": "invalid_request_error",
        }
        assert ask(http_, sandbox, key="sk-right").status_code == 200


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"model": ...}, 400, "model"),
        ({"model": 7}, 400, "model"),
        ({"messages": ...}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": ["hello"]}, 400, "messages[0]"),
        ({"messages": [{"content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "robot"),
        ({"messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content"),
        ({"thinking": {"type": "maybe"}}, 400, "maybe"),
        ({"thinking": "enabled"}, 400, "thinking"),
        ({"reasoning_effort": "medium"}, 400, "medium"),
        ({"response_format": {"type": "xml"}}, 400, "xml"),
        ({"temperature": 2.1}, 422, "temperature"),
        ({"temperature": -1}, 422, "temperature"),
        ({"temperature": "hot"}, 422, "temperature"),
        ({"temperature": True}, 422, "temperature"),
        ({"top_p": 2}, 422, "top_p"),
        ({"presence_penalty": 3}, 422, "presence_penalty"),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"max_tokens": 1.5}, 422, "max_tokens"),
        ({"max_tokens": "200"}, 422, "max_tokens"),
        ({"n": "two"}, 422, "n"),
        ({"n": 2}, 422, "n"),
        ({"stream": "yes"}, 422, "stream"),
        ({"stop": [1]}, 422, "stop"),
    ],
    ids=lambda value: json.dumps(value, default=lambda _: "absent") if isinstance(value, dict) else None,
)
def test_a_bad_body_is_refused(sandbox, http_, changes, status, said):
    """Format is refused with 400 and a parameter with 422, and the message names the culprit."""
    response = ask(http_, sandbox, **changes)
    assert response.status_code == status
    assert said in error(response)["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[]", b"[" * 100_000], ids=["empty", "cut", "not utf-8", "list", "deep"]
)
def test_a_body_that_is_no_json_object_is_refused(sandbox, http_, body):
    """Anything but a JSON object is refused with 400."""
    headers = {"Authorization": f"Bearer {KEY}"}
    url = sandbox.url + "/chat/completions"
    response = http_.post(url, data=body, headers=headers, timeout=GIVE_UP_S)
    assert response.status_code == 400
    assert "JSON" in error(response)["message"]


def test_a_request_above_16_mib_is_refused(sandbox, http_):
    """A body that is too large is refused with 413 and an error body, and counted off."""
    response = ask(http_, sandbox, "x" * (16 * 1024 * 1024))
    assert response.status_code == 413
    assert "Maximum request body size" in error(response)["message"]


def test_an_unknown_path_is_refused(sandbox, http_):
    """Another path, or another method, is a 404 with an error body."""
    response = http_.get(sandbox.url + "/chat/completions", timeout=GIVE_UP_S)
    assert response.status_code == 404
    assert "GET /chat/completions" in error(response)["message"]


def test_one_request_above_the_limit_is_refused():
    """With two requests in flight and a limit of two, the third gets a 429 that names both figures."""
    with running(SandboxConfig(port=0, latency_ms=0, concurrency=2)) as sandbox, ExitStack() as stack:
        sandbox.script([{"fault": "hang", "times": 2}])
        for _ in range(2):
            stack.enter_context(connect(sandbox, raw_request()))
        sandbox.wait_until(lambda stats: stats["in_flight"] == 2 and stats["scripted"] == 0)
        session = stack.enter_context(requests.Session())
        response = ask(session, sandbox)
        assert response.status_code == 429
        said = "Your current concurrency is 3, which exceeds your concurrency limit of 2"
        assert error(response)["message"].startswith(said)


@pytest.mark.parametrize("path", ["/models", "/v1/models"])
def test_models_are_listed(sandbox, http_, path):
    """The list holds the current models, and wants a key as the API does."""
    headers = {"Authorization": f"Bearer {KEY}"}
    listed = http_.get(sandbox.url + path, headers=headers, timeout=GIVE_UP_S).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["deepseek-flash", "deepseek-v4-pro"]
    assert http_.get(sandbox.url + path, timeout=GIVE_UP_S).status_code == 401


def test_the_root_says_that_this_is_not_deepseek(sandbox, http_):
    """Whoever opens the address in a browser is told what answers."""
    assert "this is not DeepSeek" in http_.get(sandbox.url, timeout=GIVE_UP_S).text


def test_peak_counts_parallel_calls_exactly(sandbox):
    """N calls in flight at once are a peak of N, and closed connections take them out of flight at once."""
    sandbox.script([{"fault": "hang", "times": 8}])
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connect(sandbox, raw_request()))
        assert sandbox.wait_until(lambda stats: stats["in_flight"] == 8)["peak_in_flight"] == 8
    stats = sandbox.wait_until(lambda stats: stats["in_flight"] == 0)
    assert (stats["requests"], stats["peak_in_flight"], stats["connections_opened"]) == (8, 8, 8)


def test_a_client_that_goes_away_while_waiting_is_counted_off():
    """A waiting request leaves flight with its client, long before its latency is over."""
    config = SandboxConfig(port=0, latency_ms=AN_HOUR_MS, blank_line_every_s=AN_HOUR_MS)
    with running(config) as sandbox:
        with connect(sandbox, raw_request()):
            sandbox.wait_until(lambda stats: stats["in_flight"] == 1)
        sandbox.wait_until(lambda stats: stats["in_flight"] == 0)


def test_stats_count_completions_only(sandbox, http_):
    """Three completions over one kept connection are three requests and one connection, whoever polls."""
    for _ in range(3):
        ask(http_, sandbox)
        assert requests.get(sandbox.url + "/sandbox/stats", timeout=GIVE_UP_S).status_code == 200
    stats = http_.get(sandbox.url + "/sandbox/stats", timeout=GIVE_UP_S).json()
    assert stats == sandbox.stats()
    assert (stats["requests"], stats["connections_opened"]) == (3, 1)
    assert (stats["in_flight"], stats["peak_in_flight"], stats["scripted"]) == (0, 1, 0)


def test_stats_show_the_last_request_without_its_key(sandbox, http_):
    """The last body is there as JSON, and its headers without the key."""
    ask(http_, sandbox, "最后一个")
    stats = sandbox.stats()
    assert stats["last_request_body"] == payload("最后一个")
    assert stats["last_request_headers"]["Authorization"] == "[redacted]"
    assert KEY not in json.dumps(stats)


def test_reset_starts_afresh(sandbox, http_):
    """POST /sandbox/reset zeroes the figures, drops the last request and clears the script."""
    sandbox.script([{"fault": "hang"}, {"fault": "ok"}])
    with connect(sandbox, raw_request()):
        sandbox.wait_until(lambda stats: stats["scripted"] == 1)
    sandbox.wait_until(lambda stats: stats["in_flight"] == 0)
    stats = http_.post(sandbox.url + "/sandbox/reset", timeout=GIVE_UP_S).json()
    assert stats == {
        "requests": 0,
        "in_flight": 0,
        "peak_in_flight": 0,
        "connections_opened": 0,
        "last_request_body": None,
        "last_request_headers": None,
        "scripted": 0,
    }


def test_wait_until_gives_up(sandbox):
    """A fact that does not come true ends in TimeoutError, not in a hang."""
    with pytest.raises(TimeoutError, match="not true within"):
        sandbox.wait_until(lambda stats: stats["requests"] == 99, give_up_s=0.01)
