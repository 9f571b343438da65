import json
import socket
import threading
from contextlib import suppress

import pytest
from support.serving import reply

from deepseek_client.ops.toggle.survey import ask

GIVE_UP_S = 5


def asked(server, is_enough, token="", wait_s=GIVE_UP_S):
    """What `ask` finds at a server."""
    return ask("127.0.0.1", int(server.url.rpartition(":")[2]), token, 4, is_enough, wait_s)


def answers(*pids):
    """A server's function that answers like these processes, one after the other; the even ones are async."""
    left = iter(pids)

    def answer(handler):
        pid = next(left)
        with suppress(OSError):  # nobody waits for this answer any more
            reply(handler, body=json.dumps({"pid": pid, "async_enabled": pid % 2 == 0}).encode())

    return answer


def test_asks_until_enough(serve):
    """It asks again, each time over new connections and with the token, until it is enough."""
    server = serve(answers(*range(100)))
    survey = asked(server, lambda modes: len(modes) >= 9, token="sesame")
    assert len(survey.modes) >= 9
    assert (survey.modes[0], survey.modes[1], survey.trouble) == (True, False, "")
    assert {path for path, _ in server.requests} == {"/api/llm/status"}
    assert {headers["Authorization"] for _, headers in server.requests} == {"Bearer sesame"}
    assert server.connections >= len(server.requests)


def test_without_token(serve):
    """Without a token no header is sent."""
    server = serve(answers(*range(100)))
    asked(server, lambda modes: modes)
    assert not any("Authorization" in headers for _, headers in server.requests)


def test_silent_worker(serve):
    """Questions that nobody answers hold up no others: more are sent, until one is answered."""
    released, seen = threading.Event(), []

    def answer(handler):
        seen.append(handler)
        if len(seen) <= 4:
            released.wait(GIVE_UP_S)
        else:
            answers(7)(handler)

    survey = asked(serve(answer), lambda modes: modes)
    released.set()
    assert survey.modes == {7: False}


@pytest.mark.parametrize(
    ("status", "body", "trouble"),
    [
        (401, b"{}", "/api/llm/status answers 401: WEB_API_TOKEN in .env is not the server's"),
        (404, b"{}", "/api/llm/status answers 404"),
        (200, b"<html>", "/api/llm/status answers something else than this application"),
        (200, b"[]", "/api/llm/status answers something else than this application"),
        (200, b'{"pid": 1}', "/api/llm/status answers something else than this application"),
    ],
    ids=["token", "route", "not_json", "not_an_object", "not_ours"],
)
def test_other_answers(serve, status, body, trouble):
    """What is no answer of this application is no mode, and the trouble says what it was."""

    def answer(handler):
        with suppress(OSError):
            reply(handler, status, body)

    server = serve(answer)
    survey = asked(server, lambda _: len(server.requests) >= 8, wait_s=GIVE_UP_S)
    assert survey == ({}, trouble)


def test_cut_connection(serve):
    """A connection that ends without an answer is trouble too."""
    server = serve(lambda handler: handler.connection.shutdown(socket.SHUT_RDWR))
    survey = asked(server, lambda _: len(server.requests) >= 8)
    assert survey.modes == {}
    assert survey.trouble.startswith("/api/llm/status answers nothing: ")


def test_nobody_listens(serve):
    """Where nobody listens, the time ends it, and the trouble names the address."""
    server = serve(answers())
    server.close()
    survey = asked(server, lambda _: False, wait_s=0.2)
    port = server.url.rpartition(":")[2]
    assert survey == ({}, f"127.0.0.1 port {port}: Connection refused")


def test_wildcard_address(serve):
    """A server that listens on every address is asked on this host's own."""
    server = serve(answers(*range(100)))
    survey = ask("0.0.0.0", int(server.url.rpartition(":")[2]), "", 1, lambda modes: modes, GIVE_UP_S)
    assert survey.modes == {0: True}
