"""The routes of a chat and of a parse, and the settings that an application finds by itself."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.applications import client_of, use_async

from deepseek_client import ConfigError, events
from webapp.app import create_app

ROOT = Path(__file__).parents[2]
FORBIDDEN_ARTS = [{"code": "FORBIDDEN_ARTS", "enabled": True}]


@pytest.fixture
def calls():
    """The calls that end during the test, as (method, mode)."""
    ended = []

    def note(event):
        ended.append((event.method, event.mode))

    events.subscribe(note)
    yield ended
    events.unsubscribe(note)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("enabled", "flag", "mode"),
    [
        (True, {}, "async"),
        (True, {"async": True}, "async"),
        (True, {"async": False}, "sync"),
        (False, {}, "sync"),
        (False, {"async": True}, "sync"),
        (False, {"async": False}, "sync"),
    ],
)
def test_chat(settings, calls, method, enabled, flag, mode):
    """Chat answers with text and with the mode in which the call really ran, on GET with a body too."""
    answer = client_of(settings, use_async=enabled).open(
        "/api/llm/chat", method=method, json={"prompt": "你好", **flag}
    )
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    assert answer.get_json() == {"text": "沙盒已收到：「你好」", "mode": mode}
    assert calls == [("chat", mode)]


@use_async
def test_chat_sync(settings, calls, use_async):
    """chat/sync answers with text alone, and runs in its own thread."""
    answer = client_of(settings, use_async=use_async).post("/api/llm/chat/sync", json={"prompt": "你好"})
    assert (answer.status_code, answer.get_json()) == (200, {"text": "沙盒已收到：「你好」"})
    assert calls == [("chat", "sync")]


def test_chat_sends_the_prompt_as_it_is(client, sandbox, settings):
    """The prompt goes out unchanged, white space around it too, in the legacy client's own request."""
    client.post("/api/llm/chat", json={"prompt": "  两行\n💡 "})
    sent = sandbox.stats()["last_request_body"]
    assert sent["messages"] == [
        {"role": "system", "content": "You are a helpful game AI assistant."},
        {"role": "user", "content": "  两行\n💡 "},
    ]
    assert (sent["temperature"], sent["max_tokens"]) == (0.7, 200)


PARSES = {
    "attack": (
        {"utterance": "攻击妖狼", "context": {"player": {"realm": "筑基期"}, "target_realm": "筑基期"}},
        {"intent": "attack", "slots": {"target": "妖狼"}, "allowed": True, "reason": ""},
    ),
    "talk": (
        {"utterance": "和掌柜聊聊"},
        {"intent": "talk", "slots": {"target": "掌柜"}, "allowed": True, "reason": ""},
    ),
    "move": (
        {"utterance": "前往青云山", "context": {}},
        {"intent": "move", "slots": {"place": "青云山"}, "allowed": True, "reason": ""},
    ),
    "cultivate": (
        {"utterance": "打坐修炼", "context": {"laws": FORBIDDEN_ARTS}},
        {"intent": "cultivate", "slots": {}, "allowed": True, "reason": ""},
    ),
    "inventory": (
        {"utterance": "打开背包", "context": None},
        {"intent": "inventory", "slots": {}, "allowed": True, "reason": ""},
    ),
    "forbidden_art": (
        {"utterance": "用禁术攻击妖狼", "context": {"laws": FORBIDDEN_ARTS}},
        {
            "intent": "attack",
            "slots": {"target": "妖狼", "skill": "禁术"},
            "allowed": False,
            "reason": "使用禁术不被允许",
        },
    ),
    "named_forbidden_art": (
        {"utterance": "施展噬魂大法攻击长老", "context": {"laws": FORBIDDEN_ARTS}},
        {
            "intent": "attack",
            "slots": {"target": "长老", "skill": "噬魂大法"},
            "allowed": False,
            "reason": "使用禁术不被允许：「噬魂」属于禁术",
        },
    ),
    "cross_realm": (
        {
            "utterance": "攻击长老",
            "context": {
                "player": {"realm": "炼气期"},
                "target_realm": "元婴期",
                "laws": [{"code": "CROSS_REALM_KILL"}],
            },
        },
        {
            "intent": "attack",
            "slots": {"target": "长老"},
            "allowed": False,
            "reason": "跨境界攻击不被允许：玩家境界为炼气期，目标境界为元婴期，相差3个大境界",
        },
    ),
}


@use_async
@pytest.mark.parametrize("path", ["parse", "parse/sync"])
@pytest.mark.parametrize(
    ("body", "expected"), [pytest.param(*case, id=name) for name, case in PARSES.items()]
)
def test_parse(settings, calls, path, body, expected, use_async):
    """Parse answers with intent, slots, and whether the rules of the game allow it, in Chinese why not."""
    answer = client_of(settings, use_async=use_async).post(f"/api/llm/{path}", json=body)
    assert (answer.status_code, answer.get_json()) == (200, expected)
    assert calls == [("parse", "async" if use_async and path == "parse" else "sync")]


def sent_prompt(sandbox):
    """What the last call asked of the model."""
    return sandbox.stats()["last_request_body"]["messages"][-1]["content"]


@pytest.mark.parametrize("path", ["parse", "parse/sync"])
def test_parse_sends_its_context(client, sandbox, path):
    """The scene, the realms and the enabled laws of the context reach the model; a disabled law does not."""
    context = {
        "scene": "秘境",
        "player": {"realm": "金丹期"},
        "target_realm": "化神期",
        "laws": [
            {"code": "CROSS_REALM_KILL", "enabled": True},
            {"code": "FORBIDDEN_ARTS", "enabled": False},
            {"code": "REALM_BREAKTHROUGH"},
            {"code": "UNKNOWN", "enabled": True},
        ],
    }
    client.post(f"/api/llm/{path}", json={"utterance": "攻击长老", "context": context})
    for line in (
        "场景：秘境",
        "玩家境界：金丹期",
        "目标境界：化神期",
        "世界法则：禁止跨境界斩杀；突破需渡劫",
        "玩家输入：攻击长老",
    ):
        assert line in sent_prompt(sandbox).splitlines()


@pytest.mark.parametrize(
    "context",
    [
        pytest.param({}, id="empty"),
        pytest.param(None, id="null"),
        pytest.param({"scene": None, "player": None, "target_realm": None, "laws": None}, id="null_fields"),
        pytest.param({"scene": "", "player": {}, "target_realm": "", "laws": []}, id="blank_fields"),
        pytest.param({"player": {"realm": None}, "weather": 7}, id="unknown_field"),
    ],
)
def test_parse_defaults(client, sandbox, context):
    """What a context leaves out takes the legacy client's default."""
    assert client.post("/api/llm/parse", json={"utterance": "x", "context": context}).status_code == 200
    for line in ("场景：主城", "玩家境界：炼气期", "目标境界：未知", "世界法则：无特殊限制"):
        assert line in sent_prompt(sandbox).splitlines()


@pytest.mark.parametrize("path", ["parse", "parse/sync"])
def test_parse_reply_in_a_fence(client, sandbox, path):
    """A model that wraps its JSON in a Markdown fence is understood."""
    sandbox.script([{"fault": "fenced"}])
    answer = client.post(f"/api/llm/{path}", json={"utterance": "打开背包"})
    assert (answer.status_code, answer.get_json()["intent"]) == (200, "inventory")


ALL_ROUTES = """
import sys, threading

def refuse(thread):
    raise AssertionError(f"{thread.name} was started")

threading.Thread.start = refuse
from deepseek_client import Settings
from webapp import create_app

client = create_app(Settings.from_env(
    {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sys.argv[1], "USE_ASYNC_DEEPSEEK": sys.argv[2]}
)).test_client()
body = {"prompt": "x", "utterance": "x", "async": True, "requests": [{"prompt": "x"}] * 3}
answers = [client.post("/api/llm/" + path, json=body) for path in ("chat", "chat/sync", "parse", "parse/sync", "batch")]
answers += [client.get(path) for path in ("/health", "/ready", "/metrics", "/api/llm/status")]
print([answer.status_code for answer in answers], threading.active_count())
"""


@pytest.mark.parametrize(
    ("enabled", "statuses"),
    [("0", [200] * 9), ("1", [500, 200, 500, 200, 500, 200, 200, 200, 200])],
    ids=["async_disabled", "async_enabled"],
)
def test_no_thread_without_async(sandbox, enabled, statuses):
    """With USE_ASYNC_DEEPSEEK=0 a process serves every route and starts no thread, which with 1 it needs."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALL_ROUTES, sandbox.url, enabled],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.stdout == f"{statuses} 1\n", ended.stderr


def test_settings_of_the_environment(monkeypatch, sandbox):
    """create_app() without settings reads them from the environment."""
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-test")
    monkeypatch.setenv("DEEPSEEK_BASE_URL", sandbox.url)
    monkeypatch.setenv("USE_ASYNC_DEEPSEEK", "0")
    answer = create_app().test_client().post("/api/llm/chat", json={"prompt": "甲"})
    assert answer.get_json() == {"text": "沙盒已收到：「甲」", "mode": "sync"}


def test_wrong_environment(monkeypatch):
    """create_app() refuses a wrong variable by its name and value."""
    monkeypatch.setenv("LLM_MAX_WORKERS", "five")
    with pytest.raises(ConfigError, match="LLM_MAX_WORKERS='five': need a whole number from 1 to 1000"):
        create_app()
