"""AsyncDeepSeekClient tells the truth: every fault, through every way to call, in both modes."""

from __future__ import annotations

import pytest
from support.clients import UNKNOWN, build, called

from deepseek_client import (
    AuthenticationFailed,
    BadReply,
    ClientClosed,
    ConfigError,
    ConnectionFailed,
    DeepSeekClient,
    DeepSeekError,
    InsufficientBalance,
    RateLimited,
    Settings,
    UpstreamRejected,
    UpstreamUnavailable,
)

pytestmark = pytest.mark.usefixtures("each_engine")

NOWHERE = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": "http://127.0.0.1:9"}


FAULTS = [
    ({"fault": "status", "status": 400}, UpstreamRejected),
    ({"fault": "status", "status": 401}, AuthenticationFailed),
    ({"fault": "status", "status": 402}, InsufficientBalance),
    ({"fault": "status", "status": 403}, AuthenticationFailed),
    ({"fault": "status", "status": 404}, UpstreamRejected),
    ({"fault": "status", "status": 422}, UpstreamRejected),
    ({"fault": "status", "status": 429}, RateLimited),
    ({"fault": "status", "status": 500}, UpstreamUnavailable),
    ({"fault": "status", "status": 503}, UpstreamUnavailable),
    ({"fault": "reset_before_reply", "times": 2}, ConnectionFailed),
    ({"fault": "close_before_reply", "times": 2}, ConnectionFailed),
    ({"fault": "reset_in_body"}, ConnectionFailed),
    ({"fault": "cut_body"}, ConnectionFailed),
    ({"fault": "html"}, BadReply),
    ({"fault": "truncated_json"}, BadReply),
    ({"fault": "blank"}, BadReply),
    ({"fault": "no_choices"}, BadReply),
    ({"fault": "empty_choices"}, BadReply),
    ({"fault": "blank_content"}, BadReply),
    ({"fault": "null_content"}, BadReply),
    ({"fault": "insufficient_system_resource"}, BadReply),
]


@pytest.mark.parametrize("way", ["chat_async", "parse_async", "chat", "parse"])
@pytest.mark.parametrize(
    ("fault", "kind"), FAULTS, ids=[" ".join(map(str, fault.values())) for fault, _ in FAULTS]
)
class TestTruth:
    """Every fault of the API, through every way to call, in both modes."""

    def test_a_failure_is_typed(self, sandbox, settings, way, fault, kind):
        """With errors="raise" a fault is its class, although the legacy client swallows it."""
        sandbox.script([fault])
        with pytest.raises(DeepSeekError) as caught:
            called(build(settings), way)
        assert type(caught.value) is kind

    def test_a_failure_is_swallowed(self, sandbox, settings, way, fault, kind):
        """With errors="swallow" a fault comes back as the legacy client alone returns it."""
        legacy = DeepSeekClient("sk-test", "deepseek-flash")
        legacy.base_url = sandbox.url
        sandbox.script([fault])
        alone = legacy.chat("hi") if way.startswith("chat") else legacy.parse("打坐", {})
        sandbox.script([fault])
        assert called(build(settings, errors="swallow"), way) == alone


@pytest.mark.parametrize("way", ["chat_async", "parse_async", "chat", "parse"])
class TestEveryWay:
    """What holds for the pool and for the caller's own thread alike."""

    def test_an_answer(self, settings, way):
        """A good reply comes back as the legacy client returns it."""
        answer = called(build(settings), way)
        if way.startswith("chat"):
            assert answer.keys() == {"text"}
            assert "hi" in answer["text"]
        else:
            assert answer == {**UNKNOWN, "intent": "cultivate"}

    def test_without_a_key(self, way):
        """A call without a key is a ConfigError: it never left."""
        with pytest.raises(ConfigError):
            called(build(Settings.from_env({**NOWHERE, "DEEPSEEK_API_KEY": ""})), way)

    def test_with_an_address_that_is_none(self, way):
        """A base URL that is no address is a ConfigError."""
        client = build(Settings(api_key="sk-test"))
        client.base_url = "nonsense"
        with pytest.raises(ConfigError):
            called(client, way)

    def test_nobody_listens(self, way):
        """A refused connection is ConnectionFailed."""
        with pytest.raises(ConnectionFailed):
            called(build(Settings.from_env(NOWHERE)), way)

    def test_without_the_transport_the_client_is_believed(self, sandbox, way):
        """DEEPSEEK_TRANSPORT=0: a failure looks as the legacy client shows it, also with errors="raise"."""
        env = {"DEEPSEEK_API_KEY": "k", "DEEPSEEK_BASE_URL": sandbox.url, "DEEPSEEK_TRANSPORT": "0"}
        blank = UNKNOWN if way.startswith("parse") else {"text": ""}
        assert called(build(Settings.from_env(env)), way) == blank  # deepseek-chat is refused by the API

    def test_a_closed_client_refuses(self, settings, way):
        """A closed client is a mistake of the program."""
        client = build(settings)
        client.close()
        with pytest.raises(ClientClosed):
            called(client, way)
