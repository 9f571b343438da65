"""AsyncDeepSeekClient: how it finds what it wraps, and what a call of it gives."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import requests
import responses
from support.clients import UNKNOWN, build, called
from support.patience import GIVE_UP_S

from deepseek_client import (
    AsyncDeepSeekClient,
    ConfigError,
    DeadlineExceeded,
    DeepSeekClient,
    InvalidRequest,
    RateLimited,
    Settings,
    UpstreamUnavailable,
    WorkerPool,
    call_options,
    deepseek,
)
from deepseek_client.events import CallFinished, subscribe, unsubscribe


class TestConstruction:
    """How AsyncDeepSeekClient finds what it wraps."""

    def test_the_settings_configure_the_client(self):
        """Key, base URL and model come from the settings; no network is touched."""
        env = {
            "DEEPSEEK_API_KEY": "sk-env",
            "DEEPSEEK_BASE_URL": "http://h:1/x/",
            "DEEPSEEK_MODEL": "deepseek-v4-pro",
        }
        client = AsyncDeepSeekClient(settings=Settings.from_env(env))
        assert (client.api_key, client.base_url, client.model) == (
            "sk-env",
            "http://h:1/x",
            "deepseek-v4-pro",
        )

    def test_arguments_configure_the_client(self):
        """A key given as an argument comes before the settings', and is cleaned of a stray line end."""
        client = AsyncDeepSeekClient("sk-arg\n", "deepseek-flash", settings=Settings(api_key="sk-env"))
        assert (client.api_key, client.model) == ("sk-arg", "deepseek-flash")

    def test_an_existing_client_stays_as_it_is(self):
        """A client that is handed in keeps its own configuration."""
        legacy = DeepSeekClient("sk-own", "own-model")
        client = AsyncDeepSeekClient(client=legacy, settings=Settings(api_key="sk-env", model="x"))
        assert client.api_key == "sk-own"
        assert client.model == "own-model"
        assert client.base_url == "https://api.deepseek.com/v1"

    def test_the_environment_is_read_when_no_settings_are_given(self, monkeypatch):
        """Without settings the environment counts, at the time of the call."""
        monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-env")
        monkeypatch.setenv("LLM_DEADLINE_S", "3")
        client = AsyncDeepSeekClient()
        assert client.api_key == "sk-env"
        assert client.settings.deadline_s == 3.0

    def test_an_explicit_settings_without_a_key_takes_none_of_the_environment(self, monkeypatch):
        """A key of the environment never reaches the address of settings that were given without one."""
        monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-env")
        assert AsyncDeepSeekClient(settings=Settings(base_url="http://elsewhere")).api_key == ""

    def test_a_key_of_none_is_no_key(self):
        """os.getenv's None for a key is taken as the legacy client takes it."""
        assert AsyncDeepSeekClient(None, settings=Settings()).api_key == ""

    def test_a_retired_model_without_the_transport_is_announced(self, caplog):
        """DEEPSEEK_TRANSPORT=0 with a model that the API refuses says so at once, not by blank answers alone."""
        AsyncDeepSeekClient(settings=Settings(transport=False))
        assert "DEEPSEEK_TRANSPORT=0 sends the retired model deepseek-chat as it is" in caplog.text

    def test_an_unknown_error_mode_is_refused(self):
        """A typing error in `errors` is named."""
        with pytest.raises(ConfigError, match='errors=\'ignore\': need "swallow" or "raise"'):
            AsyncDeepSeekClient(errors="ignore")


def test_a_fenced_parse_reply_is_understood(sandbox, settings):
    """A parse reply in a Markdown fence is read, in both modes."""
    for errors in ("raise", "swallow"):
        sandbox.script([{"fault": "fenced"}])
        answer = called(build(settings, errors=errors), "parse_async")
        assert answer == {**UNKNOWN, "intent": "cultivate"}


def test_retry_after_is_passed_on(sandbox, settings):
    """RateLimited carries the API's Retry-After."""
    sandbox.script([{"fault": "status", "status": 429, "headers": {"Retry-After": "7"}}])
    with pytest.raises(RateLimited) as caught:
        called(build(settings), "chat_async")
    assert caught.value.retry_after_s == 7.0


def test_a_swallowed_failure_is_logged(sandbox, settings, caplog):
    """errors="swallow" loses nothing: the log has the class's code."""
    sandbox.script([{"fault": "status", "status": 402}])
    assert called(build(settings, errors="swallow"), "chat_async") == {"text": ""}
    assert (
        "chat failed (insufficient_balance): The API reports an insufficient balance (HTTP 402)."
        in caplog.text
    )


async def test_the_deadline_ends_a_call(sandbox, settings):
    """A call that the API never answers is DeadlineExceeded after its own deadline_s."""
    sandbox.script([{"fault": "hang"}])
    with pytest.raises(DeadlineExceeded), call_options(deadline_s=0.1):
        await build(settings, pool=WorkerPool(1, 0)).chat_async("hi")


def test_any_client_of_requests_tells_the_truth(sandbox, settings):
    """A client of another class is judged by its own exchanges."""

    class Other:
        def chat(self, prompt: str) -> dict[str, str]:
            inner = DeepSeekClient("sk-test")
            inner.base_url = sandbox.url
            return {"text": inner.chat(prompt)["text"] or "sorry"}

    sandbox.script([{"fault": "status", "status": 503}])
    with pytest.raises(UpstreamUnavailable):
        asyncio.run(build(settings, client=Other()).chat_async("hi"))


def test_a_stub_is_a_client():
    """A client without any network is believed."""
    client = build(Settings(), client=SimpleNamespace(chat=lambda prompt: {"text": prompt}))
    assert asyncio.run(client.chat_async("hi")) == {"text": "hi"}


def test_it_works_under_the_responses_library():
    """An application's own tests that mock `requests` still work."""
    with responses.RequestsMock() as mock:
        mock.post(
            "https://api.deepseek.com/chat/completions",
            json={"choices": [{"message": {"content": "mocked"}}]},
        )
        assert called(build(Settings(api_key="sk-test")), "chat_async") == {"text": "mocked"}


@pytest.mark.parametrize("text", [None, 7, b"bytes", ["list"]])
def test_what_is_asked_must_be_a_text(settings, text):
    """A prompt of another type is refused by its value: the legacy client would swallow the mistake."""
    with pytest.raises(InvalidRequest, match=r"The text of chat is .*: need a str"):
        build(settings).chat(text)
    assert build(settings, errors="swallow").chat(text) == {"text": ""}


def test_the_reason_of_an_end_is_reported(sandbox, settings):
    """An answer that the model did not end by itself is an answer, and its reason is told to who listens."""
    told: list[str] = []

    def note(event: object) -> None:
        if isinstance(event, CallFinished):
            told.append(event.finish_reason)

    subscribe(note)
    try:
        sandbox.script([{"fault": "ok"}])
        build(settings).chat("hi")
    finally:
        unsubscribe(note)
    assert told == ["stop"]


async def test_a_deadline_is_swallowed_the_same_way_each_time(sandbox, settings, monkeypatch):
    """A call that we end gives what its client makes of the end: its own failure, of its own type."""
    monkeypatch.setattr(deepseek, "_SETTLE_LOOKS", 10_000)  # a busy machine's threads come back late

    class Theirs:
        def chat(self, prompt: str) -> str:
            try:
                return requests.post(f"{sandbox.url}/chat/completions", json={}, timeout=60).text
            except requests.RequestException:
                return "their own failure"

    client = AsyncDeepSeekClient(client=Theirs(), settings=settings, pool=WorkerPool(24, 0))
    sandbox.script([{"fault": "hang", "times": 24}])
    with call_options(deadline_s=1.0):
        many, here, *one_by_one = await asyncio.gather(
            client.chat_many_async(["a", "b", "c"]),
            asyncio.to_thread(client.chat, "hi"),
            *(client.chat_async("hi") for _ in range(20)),
        )
    assert (many, here, one_by_one) == (
        ["their own failure"] * 3,
        "their own failure",
        ["their own failure"] * 20,
    )


def test_a_call_that_nothing_ends_is_a_blank(settings):
    """A client whose thread does not come back at the deadline has said nothing: the caller gets the blank."""
    gate = threading.Event()
    client = AsyncDeepSeekClient(
        client=SimpleNamespace(chat=lambda prompt: gate.wait(GIVE_UP_S)), settings=settings
    )
    with call_options(deadline_s=0.05):
        assert asyncio.run(client.chat_async("hi")) == {"text": ""}
    gate.set()


async def test_a_failure_before_a_refused_attempt_is_what_the_client_gave(sandbox, settings):
    """When no further attempt finds a place, the caller gets what the client gave for the one that ran."""

    class Theirs:
        def chat(self, prompt: str) -> str:
            reply = requests.post(f"{sandbox.url}/chat/completions", json={}, timeout=60)
            return f"failed with {reply.status_code}"

    sandbox.script([{"fault": "status", "status": 400}])
    assert await AsyncDeepSeekClient(client=Theirs(), settings=settings).chat_async("hi") == "failed with 400"


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("chat", ("x" * 301,)),
        ("parse", ("打坐", {"scene": "x" * 200, "target_realm": "x" * 200})),
        ("parse", ("打坐", {"laws": [{"code": "FORBIDDEN_ARTS", "enabled": True}] * 50})),
        ("parse", ("打坐", SimpleNamespace(player=SimpleNamespace(realm="x" * 400)))),
    ],
    ids=["prompt", "context", "laws", "attributes"],
)
def test_the_prompt_limit_is_for_all_that_a_call_sends(sandbox, settings, method, arguments):
    """LLM_PROMPT_LIMIT counts the context too; nothing is sent beyond it."""
    client = build(replace(settings, prompt_limit=300))
    with pytest.raises(InvalidRequest, match="characters: need at most 300"):
        getattr(client, method)(*arguments)
    assert sandbox.stats()["requests"] == 0
    assert client.parse("打坐" * 200, {"scene": "x" * 50})["intent"]  # its beginning alone is sent
    assert client.chat("x" * 300)["text"]
