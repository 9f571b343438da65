"""The facade: any blocking client becomes awaitable, and DeepSeek's tells the truth."""

from __future__ import annotations

import asyncio
import inspect
import threading
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock, patch

import pytest
import requests
import responses
from support.clients import UNKNOWN, build, called

from deepseek_client import (
    AsyncDeepSeekClient,
    AsyncFacade,
    ClientClosed,
    ConfigError,
    DeadlineExceeded,
    DeepSeekClient,
    InvalidRequest,
    Overloaded,
    RateLimited,
    Settings,
    UpstreamUnavailable,
    WorkerPool,
    call_options,
    deepseek,
)
from deepseek_client.events import CallFinished, subscribe, unsubscribe
from deepseek_client.sandbox import SandboxConfig, running

GIVE_UP_S = 20.0
NOWHERE = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": "http://127.0.0.1:9"}


class Plain:
    """A client that has nothing to do with this project."""

    colour = "red"

    def add(self, one: int, *, other: int = 0) -> int:
        return one + other

    def fail(self) -> None:
        raise LookupError("of the client")


@pytest.fixture
def pool():
    made = WorkerPool(workers=2, queue_limit=0)
    yield made
    made.close()


@pytest.fixture
def facade(pool):
    return AsyncFacade(Plain(), pool=pool)


class TestAnyClient:
    """AsyncFacade wraps whatever it is given."""

    async def test_a_method_gains_an_awaitable_twin(self, facade):
        """`name_async` runs `name` with its arguments, in another thread."""
        assert await facade.add_async(1, other=2) == 3

    async def test_calls_run_at_once(self):
        """Three calls are in flight at the same moment, or the barrier breaks."""
        gate = threading.Barrier(3, timeout=GIVE_UP_S)
        client = SimpleNamespace(chat=lambda prompt: (gate.wait(), prompt)[1])
        facade = AsyncFacade(client, pool=WorkerPool(workers=3, queue_limit=0))
        assert await asyncio.gather(*(facade.chat_async(prompt) for prompt in "abc")) == ["a", "b", "c"]

    async def test_ten_thousand_calls_lose_no_slot(self):
        """After ten thousand calls of a method that does nothing every slot is free and each result is its own."""
        pool = WorkerPool(workers=5, queue_limit=9_995)
        facade = AsyncFacade(SimpleNamespace(noop=lambda number: number), pool=pool)
        assert await asyncio.gather(*map(facade.noop_async, range(10_000))) == list(range(10_000))
        assert (pool.stats()["busy"], pool.stats()["queued"]) == (0, 0)
        pool.close()

    async def test_an_exception_comes_back_as_it_is(self, facade):
        """What the client raises is raised, with its own type."""
        with pytest.raises(LookupError, match="of the client"):
            await facade.fail_async()

    def test_every_other_attribute_is_the_clients(self, facade):
        """Attributes are read from, set on and deleted from the wrapped client."""
        assert facade.colour == "red"
        facade.colour = "blue"
        assert facade.__wrapped__.colour == "blue"
        del facade.colour
        assert facade.colour == "red"
        assert facade.add(1) == 1

    @pytest.mark.parametrize("name", ["nothing", "nothing_async", "colour_async"])
    def test_an_attribute_that_the_client_lacks(self, facade, name):
        """A missing attribute is an AttributeError; only methods have a twin."""
        with pytest.raises(AttributeError):
            getattr(facade, name)

    async def test_a_mock_is_a_client_too(self, pool):
        """A Mock, which has every attribute, gets its calls through the pool."""
        client = Mock()
        client.chat.return_value = {"text": "hi"}
        assert await AsyncFacade(client, pool=pool).chat_async("x") == {"text": "hi"}
        client.chat.assert_called_once_with("x")

    async def test_a_clients_own_async_method_is_not_used_silently(self, pool):
        """`name_async` is the facade's, whatever the client has; the client's own is reached by __wrapped__."""

        class Both:
            def greet(self) -> str:
                return "blocking"

            async def greet_async(self) -> str:
                return "its own"

        facade = AsyncFacade(Both(), pool=pool)
        assert await facade.greet_async() == "blocking"
        assert await facade.__wrapped__.greet_async() == "its own"

    async def test_patching_a_facade_patches_its_client(self, facade):
        """unittest.mock.patch.object works on a facade, and leaves it as it was."""
        with patch.object(facade, "add", return_value=42):
            assert await facade.add_async(1) == 42
        assert await facade.add_async(1) == 1

    async def test_a_full_pool_refuses(self, pool):
        """A call beyond workers and queue is Overloaded at once."""
        entered, gate = threading.Barrier(3, timeout=GIVE_UP_S), threading.Event()

        def block() -> None:
            entered.wait()
            assert gate.wait(GIVE_UP_S)

        facade = AsyncFacade(SimpleNamespace(block=block), pool=pool)
        calls = [asyncio.ensure_future(facade.block_async()) for _ in range(2)]
        await asyncio.to_thread(entered.wait)
        with pytest.raises(Overloaded):
            await facade.block_async()
        gate.set()
        await asyncio.gather(*calls)

    async def test_a_closed_facade_refuses(self, facade, pool):
        """After close, which may be repeated and ends a `with`, a call is the program's mistake; the pool goes on."""
        with facade as same, facade:
            assert same is facade
        async with facade:
            pass
        with pytest.raises(ClientClosed):
            await facade.add_async(1)
        assert await AsyncFacade(Plain(), pool=pool).add_async(1) == 1

    def test_the_repr_names_the_client_and_no_key(self):
        """A facade's repr says what it wraps; it holds no key."""
        client = AsyncDeepSeekClient("sk-secret", settings=Settings())
        assert repr(client) == "<AsyncDeepSeekClient over DeepSeekClient>"

    async def test_the_pool_is_sized_by_the_settings(self):
        """Without a pool of its own a facade uses the process-wide one of LLM_MAX_WORKERS threads."""
        settings = Settings.from_env({"LLM_MAX_WORKERS": "3", "LLM_QUEUE_LIMIT": "0"})
        entered, gate = threading.Barrier(4, timeout=GIVE_UP_S), threading.Event()

        def block() -> None:
            entered.wait()
            assert gate.wait(GIVE_UP_S)

        facade = AsyncFacade(SimpleNamespace(block=block), settings=settings)
        calls = [asyncio.ensure_future(facade.block_async()) for _ in range(3)]
        await asyncio.to_thread(entered.wait)
        with pytest.raises(Overloaded, match="All 3 workers are busy and 0 calls wait"):
            await facade.block_async()
        gate.set()
        await asyncio.gather(*calls)


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


class TestChatMany:
    """chat_many_async: order, width, failures."""

    async def test_fifty_prompts_with_five_workers(self):
        """Fifty prompts come back in order, and the API saw exactly five of them at once."""
        with running(SandboxConfig(port=0, latency_ms=20)) as box:
            env = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": box.url, "LLM_MAX_WORKERS": "5"}
            prompts = [f"测试提示词 {number}" for number in range(50)]
            answers = await build(Settings.from_env(env)).chat_many_async(prompts)
            assert all(
                f"「{prompt}」" in answer["text"] for prompt, answer in zip(prompts, answers, strict=True)
            )
            assert box.stats()["peak_in_flight"] == 5
            assert box.stats()["requests"] == 50

    async def test_more_prompts_than_slots(self, settings):
        """A batch larger than workers and queue together is not refused: it takes turns."""
        client = build(settings, pool=WorkerPool(2, 0))
        assert len(await client.chat_many_async(["hi"] * 20)) == 20

    async def test_failures_in_place(self, sandbox, settings):
        """return_exceptions=True puts a failure where its answer would be, in both modes."""
        for errors in ("raise", "swallow"):
            sandbox.script([{"fault": "ok"}, {"fault": "status", "status": 500}, {"fault": "ok"}])
            client = build(settings, errors=errors, pool=WorkerPool(1, 0))
            first, second, third = await client.chat_many_async("abc", return_exceptions=True)
            assert isinstance(second, UpstreamUnavailable)
            assert "text" in first
            assert "text" in third

    async def test_the_first_failure_is_raised(self, sandbox, settings):
        """With errors="raise" the first failure ends the batch, and what was not begun is not sent."""
        sandbox.script([{"fault": "status", "status": 500}])
        with pytest.raises(UpstreamUnavailable):
            await build(settings, pool=WorkerPool(1, 0)).chat_many_async(["hi"] * 10)
        assert sandbox.stats()["requests"] == 1

    async def test_swallowed_failures(self, sandbox, settings):
        """With errors="swallow" a failed prompt is {"text": ""} and the others have their answers."""
        sandbox.script([{"fault": "status", "status": 500}])
        client = build(settings, errors="swallow", pool=WorkerPool(1, 0))
        first, second = await client.chat_many_async(["a", "b"])
        assert first == {"text": ""}
        assert "b" in second["text"]

    async def test_a_common_deadline(self, sandbox, settings):
        """With deadline_s the prompts whose turn never came are DeadlineExceeded, unsent."""
        sandbox.script([{"fault": "hang"}])
        client = build(settings, pool=WorkerPool(1, 0))
        answers = await client.chat_many_async("abc", return_exceptions=True, deadline_s=0.1)
        assert [type(answer) for answer in answers] == [DeadlineExceeded] * 3
        assert sandbox.stats()["requests"] <= 1  # the first, unless no thread began it in time


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


async def test_a_batch_beside_other_calls_counts_each_prompt_once(settings):
    """A prompt that finds no place while others of its batch are under way is counted by its end, not as refused."""
    ended: list[str | None] = []

    def note(event: object) -> None:
        if isinstance(event, CallFinished):
            ended.append(event.error)

    gate, entered = threading.Event(), threading.Event()

    def chat(prompt: str) -> dict[str, str]:
        if prompt == "block":
            entered.set()
            assert gate.wait(GIVE_UP_S)
        return {"text": prompt}

    pool = WorkerPool(workers=2, queue_limit=0)
    client = AsyncDeepSeekClient(client=SimpleNamespace(chat=chat), settings=settings, pool=pool)
    blocking = asyncio.ensure_future(client.chat_async("block"))
    await asyncio.to_thread(entered.wait, GIVE_UP_S)
    subscribe(note)
    try:
        assert len(await client.chat_many_async(["a", "b", "c"])) == 3
    finally:
        unsubscribe(note)
        gate.set()
        await blocking
    assert ended == [None, None, None]
    assert pool.stats()["rejected"] == 0


def test_classes_can_be_inspected():
    """inspect.signature and help() work on the classes: nothing of theirs looks like a wrapper."""
    assert "client" in inspect.signature(AsyncFacade).parameters
    assert "api_key" in inspect.signature(AsyncDeepSeekClient).parameters


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


def test_dir_runs_no_property_of_the_client():
    """dir() of a facade names the client's methods and asks the client for nothing."""

    class Odd:
        @property
        def broken(self) -> None:
            raise RuntimeError("asked")

        def ask(self) -> None: ...

    assert "ask_async" in dir(AsyncFacade(Odd()))
