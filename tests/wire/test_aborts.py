"""Calls that are ended in every phase: by an abort from outside, or by the deadline that they keep themselves."""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from support.patience import GIVE_UP_S
from support.serving import Exchanged, ask, exchanged, reply
from urllib3 import Retry

from deepseek_client import AsyncDeepSeekClient, DeadlineExceeded, Settings, call_options
from deepseek_client.wire import adapter as transport
from deepseek_client.wire import connections, waiting
from deepseek_client.wire.exchange import Interrupted, Rules


@contextmanager
def unanswering() -> Iterator[tuple[str, int]]:
    """An address that answers no connection attempt: nobody accepts, and its queue is full."""
    with ExitStack() as stack:
        full, one, two = (stack.enter_context(closing(socket.socket())) for _ in range(3))
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (one, two):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()


class Running:
    """An exchange in a thread of its own."""

    def __init__(self, function: Callable[[], Any], rules: Rules = Rules()) -> None:  # noqa: B008  # immutable
        transport.install()
        self.exchange = Exchanged(function, lambda exchange: exchange, rules=rules)
        self._thread = threading.Thread(target=self.exchange, daemon=True)
        self._thread.start()

    def blocked_in(self, phase: str) -> Running:
        """Waits until the thread has a socket to block on in this phase."""
        for _ in range(int(GIVE_UP_S * 1000)):
            if self.exchange.phase == phase and self.exchange.sockets:
                return self
            self._thread.join(0.001)
        raise AssertionError(f"never {phase}: {self.exchange.phase}, {self.exchange.error!r}")

    def aborted(self) -> Exchanged:
        """Aborts it; fails if its thread does not come back although nothing on the wire has moved."""
        self.exchange.abort("cancelled")
        self._thread.join(GIVE_UP_S)
        assert not self._thread.is_alive()
        assert self.exchange.aborted == "cancelled"
        return self.exchange


class TestAbort:
    """Exchange.abort ends a blocked call from another thread, whatever it is blocked on."""

    def test_while_connecting(self):
        """A connection attempt that nobody answers is ended."""
        with unanswering() as address:
            url = f"http://127.0.0.1:{address[1]}"
            exchange = Running(lambda: requests.get(url, timeout=60)).blocked_in("connecting").aborted()
        assert isinstance(exchange.error, requests.ConnectionError)
        assert not exchange.sent

    def test_no_socket_is_left_behind(self, monkeypatch):
        """An attempt whose end its client cannot catch closes its socket, and leaves that to no garbage collection."""
        made: list[socket.socket] = []

        class Noted(connections.WatchedSocket):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                made.append(self)

        def get() -> None:
            with suppress(Interrupted):
                requests.get(url, timeout=60)

        monkeypatch.setattr(connections, "WatchedSocket", Noted)
        with unanswering() as address:
            url = f"http://127.0.0.1:{address[1]}"
            Running(get, Rules(may_catch_end=False)).blocked_in("connecting").aborted()
        assert [sock.fileno() for sock in made] == [-1]

    def test_while_shaking_hands(self):
        """A server that accepts and never answers the TLS handshake does not hold the thread."""
        with closing(socket.create_server(("127.0.0.1", 0))) as mute:
            url = f"https://127.0.0.1:{mute.getsockname()[1]}"
            running_call = Running(lambda: requests.get(url, timeout=60))
            accepted, _ = mute.accept()
            with closing(accepted):
                assert accepted.recv(5)  # the handshake has begun
                exchange = running_call.blocked_in("connecting").aborted()
        assert isinstance(exchange.error, requests.ConnectionError)
        assert not exchange.sent

    def test_while_sending(self):
        """A server that reads nothing of a large body does not hold the thread."""
        with closing(socket.create_server(("127.0.0.1", 0))) as deaf:
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            running_call = Running(lambda: requests.post(url, data=bytes(50_000_000), timeout=60))
            accepted, _ = deaf.accept()
            with closing(accepted):
                exchange = running_call.blocked_in("sending").aborted()
        assert exchange.error is not None
        assert exchange.sent

    @pytest.mark.parametrize(
        ("fault", "phase"),
        [("hang", "waiting"), ("drip", "reading"), ("hang_in_body", "reading"), ("slow_body", "reading")],
    )
    def test_while_waiting_or_reading(self, box, fault, phase):
        """A reply that does not come, or never ends, does not hold the thread; its connection is not used again."""
        exchanged(ask, box.url)
        before = box.stats()["connections_opened"]
        box.script([{"fault": fault}])
        running_call = Running(functools.partial(ask, box.url))
        box.wait_until(lambda stats: stats["in_flight"] == 1)
        exchange = running_call.blocked_in(phase).aborted()
        assert exchange.error is not None
        assert exchange.body is None
        assert exchange.sent
        box.wait_until(lambda stats: stats["in_flight"] == 0)
        assert exchanged(ask, box.url).status == 200
        assert box.stats()["connections_opened"] == before + 1

    def test_before_it_began(self, sandbox):
        """An exchange that was aborted before its turn does not call its method."""
        called: list[int] = []
        exchange = Exchanged(lambda: called.append(1), lambda exchange: exchange.aborted)
        exchange.abort("deadline")
        assert exchange() == "deadline"
        assert called == []

    def test_between_two_requests(self, serve):
        """A client that goes on after an abort, with a retry of its own say, sends nothing more."""
        server = serve(reply)

        def stubborn() -> list[str]:
            outcomes = []
            for _ in range(2):
                try:
                    requests.get(server.url, timeout=GIVE_UP_S)
                    outcomes.append("answered")
                except requests.RequestException:
                    outcomes.append("failed")
                exchange.abort("cancelled")
            return outcomes

        transport.install()
        exchange = Exchanged(stubborn, lambda exchange: exchange.result)
        assert exchange() == ["answered", "failed"]
        assert len(server.requests) == 1

    def test_after_it_ended(self, serve):
        """A late abort does not touch the connection, which may be somebody else's by then."""
        server = serve(reply)
        exchange = exchanged(requests.get, server.url, timeout=GIVE_UP_S)
        exchange.abort("deadline")
        assert exchange.aborted is None
        assert exchanged(requests.get, server.url, timeout=GIVE_UP_S).status == 200
        assert server.connections == 1

    def test_the_first_reason_counts(self):
        """A second abort changes nothing."""
        exchange = Exchanged(int, lambda exchange: exchange.aborted)
        exchange.abort("deadline")
        exchange.abort("closing")
        assert exchange() == "deadline"

    def test_while_a_streamed_reply_and_a_further_request_are_open(self, box):
        """With two connections of one call open, the abort reaches the one that blocks, whichever it is."""
        box.script([{"fault": "drip"}])

        def read_two() -> None:
            with requests.post(f"{box.url}/chat/completions", json={}, stream=True, timeout=60) as streamed:
                ask(box.url)
                streamed.raw.read(10_000_000)

        running_call = Running(read_two)
        box.wait_until(lambda stats: stats["requests"] == 2)
        running_call.blocked_in("done").aborted()

    def test_with_retries_of_the_clients_own(self, box):
        """A Session whose plain adapter has retries keeps them, and its call is ended like any other."""
        box.script([{"fault": "drip", "times": 9}])
        with requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=Retry(3)))
            running_call = Running(lambda: session.post(f"{box.url}/chat/completions", json={}, timeout=60))
            box.wait_until(lambda stats: stats["in_flight"] == 1)
            assert running_call.blocked_in("reading").aborted().error is not None

    @pytest.mark.parametrize("mute_after", [0, 1], ids=["TLS to the proxy", "TLS through it"])
    def test_through_an_https_proxy(self, tls_sandbox, monkeypatch, mute_after):
        """A call to an HTTPS proxy that falls silent in the handshake with it, or after CONNECT, is ended."""
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", tls_sandbox.ca)
        reached = threading.Event()
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:

            def fall_silent() -> None:
                connection, _ = listener.accept()
                if mute_after:
                    connection = tls_sandbox.server_context.wrap_socket(connection, server_side=True)
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                connection.recv(5)
                reached.set()
                with connection, suppress(OSError):  # until the client goes
                    while connection.recv(65536):
                        pass

            thread = threading.Thread(target=fall_silent, daemon=True)
            thread.start()
            proxies = {"https": f"https://127.0.0.1:{listener.getsockname()[1]}"}
            running_call = Running(lambda: requests.get("https://127.0.0.1:9", proxies=proxies, timeout=60))
            assert reached.wait(GIVE_UP_S)
            assert not running_call.blocked_in("connecting").aborted().sent
            thread.join(GIVE_UP_S)


class TestDeadline:
    """Reads keep the deadline by themselves, also where nobody stands outside to abort."""

    @pytest.mark.parametrize("fault", ["hang", "drip", "hang_in_body", "slow_body"])
    def test_a_call_in_the_own_thread_ends(self, box, fault):
        """A legacy call in the caller's thread ends at its deadline, however the reply drips."""
        box.script([{"fault": fault}])
        settings = Settings(api_key="sk-test", base_url=box.url)
        client = AsyncDeepSeekClient(settings=settings, errors="raise")
        with pytest.raises(DeadlineExceeded), call_options(deadline_s=0.1):
            client.chat("hi")
        box.wait_until(lambda stats: stats["in_flight"] == 0)

    def test_connecting_ends(self):
        """A connection attempt is cut by the deadline, not by the client's own ten seconds."""
        with unanswering() as address:
            url = f"http://127.0.0.1:{address[1]}"
            client = AsyncDeepSeekClient(settings=Settings(api_key="k", base_url=url), errors="raise")
            with pytest.raises(DeadlineExceeded), call_options(deadline_s=0.1):
                client.chat("hi")

    def test_every_address_shares_the_deadline(self, monkeypatch):
        """A host with many addresses that do not answer has the deadline once, not once for each."""
        with unanswering() as address:
            found = (socket.AF_INET, socket.SOCK_STREAM, 0, "", address)
            asked: list[float] = []
            wait = waiting.wait_for_write

            def counting(sock: socket.socket, timeout_s: float) -> bool:
                asked.append(timeout_s)
                return wait(sock, timeout_s)

            monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [found] * 5)
            monkeypatch.setattr(waiting, "wait_for_write", counting)
            client = AsyncDeepSeekClient(
                settings=Settings(api_key="k", base_url="http://many.test"), errors="raise"
            )
            with pytest.raises(DeadlineExceeded), call_options(deadline_s=0.1):
                client.chat("hi")
        assert sum(asked) < 0.2

    def test_an_upload_in_pieces_ends(self):
        """A body that is sent piece by piece to a server that does not read has the deadline once."""
        with closing(socket.create_server(("127.0.0.1", 0))) as deaf:
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            pieces = (bytes(1_000_000) for _ in range(1000))
            exchange = Exchanged(
                lambda: requests.post(url, data=pieces, timeout=60),
                lambda exchange: exchange,
                deadline=time.monotonic() + 0.1,
            )
            assert exchange().error is not None

    def test_a_deadline_does_not_stay_with_the_connection(self, box):
        """A call without a deadline, on a connection that one with a deadline used, has its own timeout."""
        settings = Settings(api_key="sk-test", base_url=box.url)
        with call_options(deadline_s=2.0):
            AsyncDeepSeekClient(settings=settings, errors="raise").chat("hi")
        timeouts: list[float | None] = []

        def look() -> None:
            response = requests.get(f"{box.url}/models", timeout=7, stream=True)
            timeouts.append(response.raw.connection.sock.gettimeout())
            response.close()

        exchanged(look)
        assert timeouts == [7]
