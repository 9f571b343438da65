"""Libraries that replace what the wire is built on are honoured, as `requests` alone honours them."""

from __future__ import annotations

import asyncio
import importlib
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import requests
import requests_mock
import socks
import truststore
import urllib3
from support.clients import build
from support.serving import reply

from deepseek_client import (
    AsyncDeepSeekClient,
    AuthenticationFailed,
    BadReply,
    ConfigError,
    ConnectionFailed,
    DeadlineExceeded,
    DeepSeekError,
    InsufficientBalance,
    RateLimited,
    Settings,
    UpstreamRejected,
)
from deepseek_client.sandbox import RunningSandbox
from deepseek_client.wire import originals


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(originals, "_told", set())


def client_of(box: RunningSandbox, **options: Any) -> AsyncDeepSeekClient:
    return build(Settings(api_key="sk-test", base_url=box.url, **options))


def given(status: int, body: Any) -> requests.Response:
    """What a test hands out as a response of its own."""
    response = requests.Response()
    response.status_code, response._content = status, json.dumps(body).encode()
    return response


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == originals.__name__]


class Sentry:
    """Something that looks at what passes, and lets it."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.passed = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.passed += 1
        return self.original(*args, **kwargs)


class TestReplacedNames:
    """Whoever puts something in the place of a function or class below the client sees what is sent."""

    @pytest.mark.parametrize(
        ("module", "name"),
        [
            (socket, "getaddrinfo"),
            (urllib3.util.connection, "create_connection"),
            (urllib3.util.connection, "allowed_gai_family"),
            (urllib3.connection.HTTPConnection, "_new_conn"),
            (requests.adapters.HTTPAdapter, "get_connection_with_tls_context"),
            (requests.adapters.HTTPAdapter, "cert_verify"),
            (requests.adapters.HTTPAdapter, "send"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_function(self, fresh_box, monkeypatch, module, name):
        """The function in its place is called for each connection that is made, and calls work as before."""
        original = getattr(module, name)
        sentry = Sentry(original)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: sentry(*args, **kwargs))
        assert client_of(fresh_box).chat("hi")["text"] == "沙盒已收到：「hi」"
        assert sentry.passed

    def test_a_lookup_after_the_first_call(self, fresh_box, monkeypatch):
        """A lookup that refuses is asked although a connection was kept, and only while it is there."""
        client = client_of(fresh_box)
        client.chat("一")

        def refuse(*_: Any, **__: Any) -> None:
            raise socket.gaierror("no network in this test")

        with monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", refuse)
            with pytest.raises(ConnectionFailed):
                client.chat("二")
        assert [client.chat(prompt)["text"] for prompt in "三四"] == [
            "沙盒已收到：「三」",
            "沙盒已收到：「四」",
        ]
        assert fresh_box.stats()["requests"] == 3
        assert fresh_box.stats()["connections_opened"] == 2

    def test_a_tls_context(self, fresh_box, monkeypatch):
        """A function that makes urllib3's contexts its own way makes those of calls."""
        sentry = Sentry(urllib3.util.ssl_.create_urllib3_context)
        for module in (urllib3.util.ssl_, urllib3.connection):
            monkeypatch.setattr(module, "create_urllib3_context", lambda **options: sentry(**options))
        client_of(fresh_box).chat("hi")
        assert bool(sentry.passed) == fresh_box.url.startswith("https")

    def test_a_socket(self, fresh_box, monkeypatch):
        """A class in the place of socket.socket makes the sockets."""
        made: list[Any] = []

        class Guarded(socket.socket):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                made.append(args)
                super().__init__(*args, **kwargs)

        monkeypatch.setattr(socket, "socket", Guarded)
        client_of(fresh_box).chat("hi")
        assert made

    def test_a_method_of_sockets(self, fresh_box, monkeypatch):
        """A guard in the place of socket.socket.connect, such as pytest-socket's, refuses calls."""

        def refuse(*_: Any) -> None:
            raise PermissionError("no network in this test")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        with pytest.raises(ConnectionFailed):
            client_of(fresh_box).chat("hi")
        assert fresh_box.stats()["requests"] == 0

    def test_a_proxy_over_sockets(self, fresh_box, monkeypatch):
        """PySocks in the place of socket.socket takes every connection: where its proxy is away, none is made."""
        monkeypatch.setattr(
            socks.socksocket, "default_proxy", (socks.SOCKS5, "127.0.0.1", 9, True, None, None)
        )
        monkeypatch.setattr(socket, "socket", socks.socksocket)
        with pytest.raises(ConnectionFailed) as caught:
            client_of(fresh_box).chat("hi")
        assert "SOCKS5" in str(caught.value.__cause__)
        assert fresh_box.stats()["requests"] == 0

    def test_a_proxy_that_equals(self):
        """A proxy that says it equals the function that it stands for, as wrapt's does, is seen at once."""

        class Proxy(Sentry):
            def __eq__(self, other: object) -> bool:
                return self.original == other

        owner = SimpleNamespace(connect=socket.create_connection)
        known = originals.Originals([originals.Original(owner, "connect", "socket")])
        assert known.are_in_place()
        owner.connect = Proxy(socket.create_connection)
        assert not known.are_in_place()
        owner.connect = socket.create_connection
        assert known.are_in_place()

    def test_what_is_lost_is_said_once(self, fresh_box, monkeypatch, caplog):
        """One warning names what was replaced; when it is back in its place, connections are shared again."""
        client = client_of(fresh_box)
        with monkeypatch.context() as replaced:
            sentry = Sentry(urllib3.util.connection.create_connection)
            replaced.setattr(urllib3.util.connection, "create_connection", sentry)
            for prompt in "一二三":
                client.chat(prompt)
        for prompt in "四五六":
            client.chat(prompt)
        assert len(warnings_of(caplog)) == 1
        assert warnings_of(caplog)[0].startswith(
            "urllib3.util.connection.create_connection has been replaced"
        )
        assert fresh_box.stats()["connections_opened"] == 4

    def test_another_urllib3(self, fresh_box, monkeypatch, caplog):
        """urllib3-future, which comes with niquests and takes urllib3's place on disk, is left to `requests`."""
        monkeypatch.setattr(originals, "_IS_URLLIB3", False)
        monkeypatch.setattr(originals.are_in_place.__self__, "_found", None)
        client = client_of(fresh_box)
        for prompt in "一二三":
            assert f"「{prompt}」" in client.chat(prompt)["text"]
        assert fresh_box.stats()["connections_opened"] == 3
        assert len(warnings_of(caplog)) == 1


class TestDeadline:
    """Over a connection of another's, too, a reply that never ends ends at the deadline."""

    @pytest.mark.parametrize("fault", ["drip", "hang", "hang_in_body", "slow_body"])
    def test_truststore(self, fresh_box, monkeypatch, fault):
        """truststore in the place of ssl.SSLContext verifies, and the deadline is kept in the caller's own thread."""
        if hasattr(requests.adapters, "_preloaded_ssl_context"):
            monkeypatch.setattr(
                requests.adapters, "_preloaded_ssl_context", requests.adapters._preloaded_ssl_context
            )
        client = client_of(fresh_box, deadline_s=0.3)
        truststore.inject_into_ssl()
        try:
            assert isinstance(ssl.create_default_context(), truststore.SSLContext)
            fresh_box.script(
                [{"fault": fault, "every_s": 0.01} if fault in ("drip", "slow_body") else {"fault": fault}]
            )
            with pytest.raises(DeadlineExceeded):
                client.chat("hi")
            fresh_box.wait_until(lambda stats: stats["in_flight"] == 0)
        finally:
            truststore.extract_from_ssl()

    @pytest.mark.filterwarnings(
        "ignore:'urllib3.contrib.pyopenssl' module is deprecated:DeprecationWarning",
        "ignore:X509.get_subject is deprecated:DeprecationWarning",  # urllib3 2.0 asks it
    )
    def test_pyopenssl(self, fresh_box):
        """pyOpenSSL in the place of urllib3's contexts, likewise."""
        pyopenssl = importlib.import_module("urllib3.contrib.pyopenssl")
        pyopenssl.inject_into_urllib3()
        try:
            fresh_box.script([{"fault": "ok"}, {"fault": "drip", "every_s": 0.01}])
            assert client_of(fresh_box).chat("hi")["text"] == "沙盒已收到：「hi」"
            with pytest.raises(DeadlineExceeded):
                client_of(fresh_box, deadline_s=0.5).chat("hi")
        finally:
            pyopenssl.extract_from_urllib3()

    def test_an_adapter_of_the_clients_own(self, fresh_box):
        """A client with a Session whose adapter is special is ended as well."""

        class Special(requests.adapters.HTTPAdapter):
            pass

        fresh_box.script([{"fault": "drip", "every_s": 0.01}])
        with requests.Session() as session:
            session.mount(fresh_box.url, Special())

            class Client:
                def chat(self, prompt: str) -> Any:
                    return session.post(f"{fresh_box.url}/chat/completions", json={}, timeout=60).json()

            client = build(Settings(api_key="k", base_url=fresh_box.url, deadline_s=0.3), client=Client())
            with pytest.raises(DeadlineExceeded):
                client.chat("hi")


class TestRecordersAndMocks:
    """What a recorder or a mock answers is the truth of a call, as if it had come over the wire."""

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="this vcrpy wants Python 3.11")
    def test_vcrpy_answers_and_refuses(self, fresh_box, tmp_path):
        """A cassette is recorded and played back, and with record_mode "none" nothing is ever sent."""
        vcr = importlib.import_module("vcr")
        client = client_of(fresh_box)
        client.chat("before, over a connection that is kept")
        cassette = str(tmp_path / "cassette.yaml")
        with vcr.use_cassette(cassette):
            recorded = client.chat("hi")
        with vcr.use_cassette(cassette, record_mode="none") as played:
            assert client.chat("hi") == recorded
            assert played.play_count == 1
            with pytest.raises(DeepSeekError):
                client.chat("hi")
        assert fresh_box.stats()["requests"] == 2

    @pytest.mark.parametrize("way", ["chat", "chat_async"])
    @pytest.mark.parametrize(
        ("answer", "kind", "attempts"),
        [
            ({"status_code": 401, "json": {"error": {"message": "no"}}}, AuthenticationFailed, 1),
            ({"status_code": 402, "json": {"error": {"message": "no"}}}, InsufficientBalance, 1),
            ({"status_code": 422}, UpstreamRejected, 1),
            ({"status_code": 429, "headers": {"Retry-After": "90"}}, RateLimited, 1),
            ({"json": {"choices": [{"message": {"content": "  "}}]}}, BadReply, 2),
            ({"exc": requests.exceptions.ConnectTimeout}, ConnectionFailed, 3),
        ],
        ids=["401", "402", "422", "429", "blank", "timeout"],
    )
    def test_requests_mock(self, sandbox, monkeypatch, way, answer, kind, attempts):
        """A failure that requests_mock gives is of the class of a real one, and tried as often."""
        from deepseek_client.calls import retries

        monkeypatch.setattr(retries.random, "uniform", lambda low, high: 0.0)
        client = client_of(sandbox)
        client.chat("before, so that everything is installed")
        with requests_mock.Mocker() as mock:
            mock.post(f"{sandbox.url}/chat/completions", **answer)
            with pytest.raises(kind) as caught:
                client.chat("hi") if way == "chat" else asyncio.run(client.chat_async("hi"))
            assert mock.call_count == (attempts if way == "chat_async" else 1)
        assert "Nothing was sent" not in str(caught.value)
        assert sandbox.stats()["requests"] == 1

    @pytest.mark.parametrize("way", ["chat", "chat_async"])
    @pytest.mark.parametrize(
        "place",
        ["requests.post", "requests.api.request", "requests.Session.request", "requests.Session.send"],
    )
    @pytest.mark.parametrize(
        ("answer", "kind", "attempts"),
        [
            (given(401, {"error": {"message": "no"}}), AuthenticationFailed, 1),
            (given(402, {"error": {"message": "no"}}), InsufficientBalance, 1),
            (given(429, {}), RateLimited, 3),
            (given(200, {"choices": [{"message": {"content": "  "}}]}), BadReply, 2),
            (given(200, {"error": "no"}), BadReply, 2),
            (requests.exceptions.ReadTimeout("late"), ConnectionFailed, 3),
            (requests.exceptions.InvalidURL("no host"), ConfigError, 1),
        ],
        ids=["401", "402", "429", "blank", "error", "timeout", "address"],
    )
    def test_a_mock_in_the_place_of_a_function(
        self, sandbox, monkeypatch, way, place, answer, kind, attempts
    ):
        """What unittest.mock gives instead of a function of `requests` is what the call gave; nothing is sent."""
        from deepseek_client.calls import retries

        monkeypatch.setattr(retries.random, "uniform", lambda low, high: 0.0)
        client = client_of(sandbox)
        client.chat("before, so that everything is installed")
        with patch(place, side_effect=[answer] * 3) as mocked, pytest.raises(kind) as caught:
            client.chat("hi") if way == "chat" else asyncio.run(client.chat_async("hi"))
        assert mocked.call_count == (attempts if way == "chat_async" else 1)
        assert "Nothing was sent" not in str(caught.value)
        assert sandbox.stats()["requests"] == 1

    def test_a_mock_that_answers_for_a_parse(self, sandbox):
        """Intent "unknown" is an answer if the client has swallowed nothing, and a failure if it has."""
        client = client_of(sandbox)
        unknown = {"intent": "unknown", "slots": {}, "allowed": True, "reason": ""}
        answers = [json.dumps(unknown), "no object"]
        bodies = [{"choices": [{"message": {"content": answer}}]} for answer in answers]
        with patch("requests.post", side_effect=[given(200, body) for body in bodies]):
            assert client.parse("打坐", SimpleNamespace()) == unknown
            with pytest.raises(BadReply):
                client.parse("打坐", SimpleNamespace())

    def test_requests_mock_answers(self, sandbox):
        """An answer of requests_mock is an answer, on a session, as a fixture, and with real requests let through."""
        client = client_of(sandbox)
        url = f"{sandbox.url}/chat/completions"
        with requests_mock.Mocker() as mock:
            mock.post(url, json={"choices": [{"message": {"content": "mocked"}}]})
            assert client.chat("hi") == {"text": "mocked"}
        with requests_mock.Mocker(real_http=True):
            assert client.chat("hi")["text"] == "沙盒已收到：「hi」"
        assert client.chat("hi")["text"] == "沙盒已收到：「hi」"
        assert sandbox.stats()["requests"] == 2


def test_libraries_that_came_first(serve: Callable[..., Any]):
    """What was replaced before this package was imported is honoured, too."""
    server = serve(lambda handler: reply(handler, body=b'{"choices": [{"message": {"content": "sent"}}]}'))
    program = f"""
import socket
import socks, truststore
truststore.inject_into_ssl()
socks.set_default_proxy(socks.SOCKS5, "127.0.0.1", 9)
socket.socket = socks.socksocket
from deepseek_client import AsyncDeepSeekClient, Settings
print(AsyncDeepSeekClient(settings=Settings(api_key="k", base_url="{server.url}")).chat("hi"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "{'text': ''}\n"
    assert "ssl.SSLContext, urllib3.util.ssl_.SSLContext has been replaced" in done.stderr
    assert not server.requests
