"""Kept connections lose no call and repeat none when a server closes them."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest
import requests
from support.patience import GIVE_UP_S
from support.serving import ask, exchanged

from deepseek_client.wire import connections


class TestKeptConnections:
    """A server may close a kept connection at any time."""

    def test_a_connection_that_was_closed_is_replaced(self, box):
        """Calls whose kept connection the server has closed meanwhile are answered on a new one."""
        box.script([{"fault": "close_after_reply", "times": 50}])
        statuses = [exchanged(ask, box.url).status for _ in range(50)]
        assert statuses == [200] * 50
        assert box.stats()["requests"] == 50

    @pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "unnoticed"])
    def test_a_server_that_closes_idle_connections_loses_no_call(self, monkeypatch, noticed):
        """A thousand calls to a server that closes every idle connection are answered once each.

        Whether urllib3 notices the close when it takes the connection, or the request runs into it.
        """
        if not noticed:
            monkeypatch.setattr("urllib3.connectionpool.is_connection_dropped", lambda connection: False)
        served, idle_closed = [], threading.Semaphore(0)

        def serve(listener: socket.socket) -> None:
            for number in range(1000):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(GIVE_UP_S)
                    if connection.recv(65536):
                        served.append(number)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                idle_closed.release()

        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            threading.Thread(target=serve, args=(listener,), daemon=True).start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            statuses = []
            for _ in range(1000):
                statuses.append(exchanged(requests.get, url, timeout=GIVE_UP_S).status)
                assert idle_closed.acquire(timeout=GIVE_UP_S)
        assert statuses == [200] * 1000
        assert served == list(range(1000))

    @pytest.mark.parametrize("fault", ["close_before_reply", "reset_before_reply"])
    def test_an_end_without_a_reply_is_not_repeated_late(self, box, monkeypatch, fault):
        """A kept connection that ends at once without a reply is replaced; one that ends later is a failure.

        By then the server may have worked on the request, and it may be billed.
        """
        for within_s, requests_seen in ((GIVE_UP_S, 2), (0.0, 1)):
            exchanged(ask, box.url)
            box.reset()
            box.script([{"fault": fault}])
            monkeypatch.setattr(connections, "_IDLE_CLOSE_WITHIN_S", within_s)
            exchange = exchanged(ask, box.url)
            assert exchange.requests == box.stats()["requests"] == requests_seen
            assert (exchange.error is None) == (requests_seen == 2)

    def test_a_body_that_is_used_up_is_not_sent_again(self, monkeypatch):
        """A body from an iterator or a file cannot be repeated: the failure is told, not a half sent."""
        served: list[int] = []
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            threading.Thread(target=self.serve, args=(listener, served), daemon=True).start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            assert exchanged(requests.get, url, timeout=GIVE_UP_S).status == 200
            post = functools.partial(requests.post, data=iter([b"hello ", b"world"]))
            exchange = exchanged(self.close_under, post, url)
            assert isinstance(exchange.error, requests.ConnectionError)
            assert exchange.requests == 1

    @staticmethod
    def serve(listener: socket.socket, served: list[int]) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(GIVE_UP_S)
            if connection.recv(65536):
                served.append(1)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    @staticmethod
    def close_under(send: Callable[..., Any], url: str) -> Any:
        """Pretends that the server's close had not been noticed yet when the connection was taken."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("urllib3.connectionpool.is_connection_dropped", lambda connection: False)
            return send(url, timeout=GIVE_UP_S)

    @pytest.mark.parametrize("fault", ["reset_in_body", "cut_body"])
    def test_a_request_that_was_answered_in_part_is_not_sent_again(self, box, fault):
        """When a reply has begun the transport does not repeat the request."""
        exchanged(ask, box.url)
        box.reset()
        box.script([{"fault": fault}])
        exchange = exchanged(ask, box.url)
        assert isinstance(exchange.error, requests.RequestException)
        assert exchange.requests == box.stats()["requests"] == 1

    def test_a_new_connection_that_ends_is_not_tried_again(self):
        """A server that closes a new connection without a word is a failure, not a loop."""
        taken: list[int] = []

        def refuse(listener: socket.socket) -> None:
            with suppress(OSError):  # the end of the test
                while True:
                    connection, _ = listener.accept()
                    taken.append(1)
                    connection.close()

        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            thread = threading.Thread(target=refuse, args=(listener,))
            thread.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            assert isinstance(exchanged(requests.get, url, timeout=GIVE_UP_S).error, requests.ConnectionError)
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(GIVE_UP_S)
        assert taken == [1]


def test_no_warning_of_a_full_pool(sandbox, caplog):
    """As many connections are kept as calls were in flight at once: none is thrown away."""
    gate = threading.Barrier(20, timeout=GIVE_UP_S)

    def meet() -> None:
        gate.wait()
        exchanged(ask, sandbox.url)

    threads = [threading.Thread(target=meet) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GIVE_UP_S)
    assert "Connection pool is full" not in caplog.text
    assert sandbox.stats()["requests"] == 20
