"""The transport: shares connections during exchanges, records the wire, and is invisible to everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import os
import socket
import threading
import traceback
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import responses
from requests.adapters import HTTPAdapter
from requests.auth import HTTPDigestAuth
from support.patience import GIVE_UP_S
from support.serving import Exchanged, ask, exchanged, reply

from deepseek_client import AsyncFacade, BadReply, Settings
from deepseek_client.calls.caller import Caller
from deepseek_client.wire import adapter as transport
from deepseek_client.wire.failures import failure_from

URL = "https://api.example.test/chat/completions"


class TestReplyLimit:
    """A reply of no end takes no memory of no end."""

    @pytest.mark.parametrize("stated", [True, False], ids=["content-length", "until-closed"])
    def test_a_reply_over_the_limit_is_a_bad_reply(self, serve, monkeypatch, stated):
        """Reading ends soon after the limit, the client gets an error, and the connection is not used again."""
        sent: list[int] = []

        def answer(handler: Any) -> None:
            handler.send_response(200)
            handler.send_header(*(("Content-Length", "1000000000") if stated else ("Connection", "close")))
            handler.end_headers()
            with contextlib.suppress(OSError):  # the client has hung up
                for _ in range(1_000):
                    sent.append(handler.wfile.write(b" " * 1_000_000))

        exchange = exchanged(requests.post, serve(answer).url, timeout=GIVE_UP_S)
        assert str(exchange.error) == "The API's reply is larger than 100000 bytes."
        assert type(failure_from(exchange.error)) is BadReply
        assert exchange.raised is exchange.error
        assert exchange.body is None
        assert sum(sent) < 100_000_000

    def test_what_decompresses_over_the_limit_is_a_bad_reply(self, serve, monkeypatch):
        """The limit is for the body as the client would hold it."""
        server = serve(
            lambda handler: reply(handler, 200, gzip.compress(bytes(1_000_000)), Content_Encoding="gzip")
        )
        assert type(exchanged(requests.post, server.url, timeout=GIVE_UP_S).error) is BadReply

    def test_any_other_client_has_no_limit(self, serve):
        """A client that is not DeepSeek's may download what it likes."""
        server = serve(lambda handler: reply(handler, 200, b"x" * 5_000_000))
        facade = AsyncFacade(requests.Session())
        assert len(asyncio.run(facade.get_async(server.url, timeout=GIVE_UP_S)).content) == 5_000_000

    def test_a_reply_is_not_kept(self, serve):
        """A reply is freed with its call, not by the next run of the garbage collector."""
        server = serve(lambda handler: reply(handler, 200, b"x" * 100_000))
        replies: list[weakref.ref[requests.Response]] = []

        def ask_and_drop() -> None:
            replies.append(weakref.ref(requests.post(server.url, timeout=GIVE_UP_S)))

        caller = Caller(SimpleNamespace(ask=ask_and_drop), Settings())
        gc.disable()
        try:
            caller.run_here(caller.call("ask", (), {}))
            assert replies[0]() is None
        finally:
            gc.enable()

    def test_a_reply_at_the_limit_arrives(self, serve, monkeypatch):
        """A body of exactly the limit is whole."""
        server = serve(lambda handler: reply(handler, 200, b"x" * 100_000))
        assert exchanged(requests.post, server.url, timeout=GIVE_UP_S).body == b"x" * 100_000


class TestConnections:
    """One connection serves call after call."""

    def test_calls_share_a_connection(self, sandbox):
        """Ten calls of `requests.post` in exchanges use one connection."""
        for _ in range(10):
            assert exchanged(ask, sandbox.url).status == 200
        assert sandbox.stats()["connections_opened"] <= 1
        assert sandbox.stats()["requests"] == 10

    def test_a_failed_status_keeps_the_connection(self, sandbox):
        """A refused call gives its connection back: its body was read."""
        exchanged(ask, sandbox.url)
        sandbox.reset()
        sandbox.script([{"fault": "status", "status": 503, "times": 5}])
        for _ in range(5):
            assert exchanged(ask, sandbox.url).status == 503
        assert sandbox.stats()["connections_opened"] <= 1

    def test_a_redirect_without_a_path_keeps_hosts_apart(self, serve):
        """A URL that is an origin alone, as a redirect may name it, is asked at that origin."""
        servers = [
            serve(lambda handler: reply(handler, body=handler.headers["Host"].encode())) for _ in range(2)
        ]
        places = iter([server.url for server in servers])
        director = serve(lambda handler: reply(handler, 302, Location=next(places)))
        said = [exchanged(requests.get, director.url, timeout=GIVE_UP_S).body for _ in range(2)]
        assert [f"http://{host.decode()}" for host in said] == [server.url for server in servers]

    def test_a_pool_that_was_closed_is_replaced(self, sandbox):
        """Closing all connections costs connections, not calls."""
        exchanged(ask, sandbox.url)
        opened = sandbox.stats()["connections_opened"]
        transport._shared_adapter().close()
        assert exchanged(ask, sandbox.url).status == 200
        assert sandbox.stats()["connections_opened"] == opened + 1

    def test_a_child_opens_its_own_connection(self, serve):
        """A forked child never writes to the connection that its parent still uses."""
        server = serve(reply)
        exchanged(requests.get, server.url, timeout=GIVE_UP_S)
        pid = os.fork()
        if pid == 0:
            try:
                assert exchanged(requests.get, server.url, timeout=GIVE_UP_S).status == 200
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert server.connections == 2
        exchanged(requests.get, server.url, timeout=GIVE_UP_S)
        assert server.connections == 2


class TestRecord:
    """The exchange says what happened, whatever the client does with it."""

    def test_a_reply(self, sandbox):
        """Status and whole body of a reply are recorded."""
        exchange = exchanged(ask, sandbox.url)
        assert (exchange.requests, exchange.status, exchange.error) == (1, 200, None)
        assert json.loads(exchange.body)["choices"]

    def test_a_refusal(self, sandbox):
        """Status and Retry-After of a refusal are recorded."""
        sandbox.script([{"fault": "status", "status": 429, "headers": {"Retry-After": "7"}}])
        exchange = exchanged(ask, sandbox.url)
        assert (exchange.status, exchange.response.headers["Retry-After"]) == (429, "7")

    @pytest.mark.parametrize("fault", ["reset_before_reply", "close_before_reply"])
    def test_no_reply(self, sandbox, fault):
        """A connection that ends before the reply is an error without a status."""
        sandbox.script([{"fault": fault, "times": 2}])  # a kept connection that was closed is replaced once
        exchange = exchanged(ask, sandbox.url)
        assert exchange.status is None
        assert isinstance(exchange.error, requests.ConnectionError)

    @pytest.mark.parametrize("fault", ["reset_in_body", "cut_body"])
    def test_half_a_reply(self, sandbox, fault):
        """A body that breaks off is an error, although its status was 200, and is not kept."""
        sandbox.script([{"fault": fault}])
        exchange = exchanged(ask, sandbox.url)
        assert exchange.status == 200
        assert isinstance(exchange.error, requests.RequestException)
        assert exchange.body is None

    def test_nobody_listens(self):
        """A refused connection is recorded."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            exchange = exchanged(ask, f"http://127.0.0.1:{free.getsockname()[1]}")
        assert isinstance(exchange.error, requests.ConnectionError)
        assert isinstance(exchange.raised, requests.ConnectionError)

    def test_a_client_that_swallows(self, sandbox):
        """The record does not depend on what the client lets out."""
        sandbox.script([{"fault": "status", "status": 500}])

        def swallow() -> str:
            try:
                ask(sandbox.url).raise_for_status()
            except requests.RequestException:
                return ""
            return "fine"

        exchange = exchanged(swallow)
        assert (exchange.result, exchange.raised, exchange.status) == ("", None, 500)

    def test_a_mocked_client(self):
        """Under the `responses` library the record is the mocked reply."""
        with responses.RequestsMock() as mock:
            mock.post(URL, status=402, body="{}")
            exchange = exchanged(requests.post, URL, json={})
        assert (exchange.status, exchange.body) == (402, b"{}")

    def test_a_streamed_body_is_left_to_the_client(self, serve):
        """With stream=True the body is the client's to read."""
        server = serve(lambda handler: reply(handler, body=b"streamed"))

        def read() -> bytes:
            with requests.get(server.url, stream=True, timeout=GIVE_UP_S) as response:
                return next(response.iter_content(100))

        exchange = exchanged(read)
        assert (exchange.result, exchange.status, exchange.body) == (b"streamed", 200, None)


class TestAsRequestsDoesIt:
    """Inside an exchange `requests` keeps its own manners."""

    def test_cookies_do_not_reach_the_next_call(self, serve):
        """A cookie that one call was given is not sent by the next, although the connection is the same."""
        server = serve(lambda handler: reply(handler, Set_Cookie="player=1"))
        for _ in range(2):
            exchanged(requests.get, server.url, timeout=GIVE_UP_S)
        assert server.connections == 1
        assert ["Cookie" in headers for _, headers in server.requests] == [False, False]

    def test_a_session_keeps_its_cookies(self, serve):
        """A client with a Session of its own still has its cookies."""
        server = serve(lambda handler: reply(handler, Set_Cookie="player=1"))
        with requests.Session() as session:
            for _ in range(2):
                exchanged(session.get, server.url, timeout=GIVE_UP_S)
        assert ["Cookie" in headers for _, headers in server.requests] == [False, True]

    def test_redirects_are_followed(self, serve):
        """A redirect is followed, and the last reply is the record."""

        def answer(handler: Any) -> None:
            if handler.path == "/":
                reply(handler, 302, Location="/there", Retry_After="3")
            else:
                reply(handler, body=b"arrived")

        exchange = exchanged(requests.get, serve(answer).url, timeout=GIVE_UP_S)
        assert (exchange.requests, exchange.status, exchange.body) == (2, 200, b"arrived")
        assert "Retry-After" not in exchange.response.headers
        assert [response.status_code for response in exchange.result.history] == [302]

    def test_digest_authentication_works(self, serve):
        """The second request of a digest authentication is sent and recorded."""

        def answer(handler: Any) -> None:
            if "Authorization" in handler.headers:
                reply(handler, body=b"welcome")
            else:
                reply(handler, 401, WWW_Authenticate='Digest realm="r", nonce="n", qop="auth"')

        auth = HTTPDigestAuth("player", "secret")
        exchange = exchanged(requests.get, serve(answer).url, auth=auth, timeout=GIVE_UP_S)
        assert (exchange.requests, exchange.status, exchange.body) == (2, 200, b"welcome")

    def test_response_hooks_run(self, serve):
        """A response hook of the call sees its response."""
        server, seen = serve(reply), []
        exchanged(
            requests.get,
            server.url,
            hooks={"response": lambda response, **_: seen.append(response.status_code)},
            timeout=GIVE_UP_S,
        )
        assert seen == [200]

    def test_an_adapter_of_the_clients_own_is_used(self, serve):
        """A Session's special adapter keeps its job, and its exchange is recorded all the same."""
        used: list[str] = []

        class Special(HTTPAdapter):
            def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
                used.append(request.url)
                return super().send(request, *args, **kwargs)

        server = serve(reply)
        with requests.Session() as session:
            session.mount("http://", Special())
            exchange = exchanged(session.get, server.url, timeout=GIVE_UP_S)
        assert used == [f"{server.url}/"]
        assert exchange.status == 200

    @pytest.mark.parametrize("own", ["source address", "limit", "send"])
    def test_an_adapter_with_settings_of_its_own_is_used(self, serve, own):
        """A plain adapter with an address of its own, a connection limit or a patched method is not replaced."""
        adapter = HTTPAdapter(pool_block=own == "limit")
        if own == "source address":
            adapter.init_poolmanager(1, 1, source_address=("127.0.0.1", 0))
        if own == "send":
            adapter.send = adapter.send
        server = serve(reply)
        with requests.Session() as session:
            session.mount("http://", adapter)
            assert exchanged(session.get, server.url, timeout=GIVE_UP_S).status == 200
            assert len(adapter.poolmanager.pools) == 1

    def test_an_adapter_with_retries_keeps_them(self, sandbox):
        """A plain adapter that was given retries is not replaced by one without."""
        sandbox.script([{"fault": "close_before_reply"}])
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=2))
            exchange = exchanged(session.get, f"{sandbox.url}/models", timeout=GIVE_UP_S)
        assert exchange.status in (200, 401)


class TestNobodyElseNotices:
    """Code that uses `requests` outside of an exchange sees no difference, also while exchanges run."""

    def test_a_session_beside_a_call(self, serve):
        """While a call is in flight another thread's Session has its own adapter, connection and cookies."""
        server = serve(lambda handler: reply(handler, Set_Cookie="mine=1"))
        in_flight, gate = threading.Event(), threading.Event()

        def hold(handler: Any) -> None:
            in_flight.set()
            assert gate.wait(GIVE_UP_S)
            reply(handler)

        call = threading.Thread(target=exchanged, args=(ask, serve(hold).url))
        call.start()
        assert in_flight.wait(GIVE_UP_S)
        with requests.Session() as session:
            assert session.get_adapter("http://x") is session.adapters["http://"]
            assert session.get_adapter("https://x") is session.adapters["https://"]
            session.get(server.url, timeout=GIVE_UP_S)
            session.get(server.url, timeout=GIVE_UP_S)
            assert session.cookies.get_dict() == {"mine": "1"}
        gate.set()
        call.join(GIVE_UP_S)
        assert [headers.get("Cookie") for _, headers in server.requests] == [None, "mine=1"]
        assert server.connections == 1

    def test_outside_each_post_has_its_own_connection(self, serve):
        """Outside of exchanges `requests.get` opens a connection for each call, as ever."""
        server = serve(reply)
        exchanged(requests.get, server.url, timeout=GIVE_UP_S)
        for _ in range(2):
            requests.get(server.url, timeout=GIVE_UP_S)
        assert server.connections == 3

    def test_an_unknown_scheme_fails_as_ever(self):
        """The error for a scheme without an adapter is the one of `requests`."""
        with pytest.raises(requests.exceptions.InvalidSchema):
            requests.Session().get_adapter("ftp://x")

    def test_install_wraps_once(self):
        """Installing again changes nothing."""
        transport.install()
        before = requests.Session.get_adapter
        transport.install()
        assert requests.Session.get_adapter is before

    def test_install_survives_a_mock_that_restores(self, monkeypatch):
        """When a mocking library put the original back, the next install takes effect again."""
        for name in ("get_adapter", "send"):
            monkeypatch.setattr(requests.Session, name, getattr(requests.Session, name).__wrapped__)
        with responses.RequestsMock() as mock:
            mock.post(URL, status=500)
            unseen = Exchanged(lambda: requests.post(URL), lambda exchange: exchange)
            assert unseen().status is None
            assert exchanged(requests.post, URL).status == 500
