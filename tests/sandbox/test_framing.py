"""Replies that are framed in odd ways, byte for byte, and a connection that the network forgets."""

import json
import socket
import sys

import pytest
from asking import ask, choice, connect, raw_request, read_all
from support.patience import GIVE_UP_S

LAST = b'"fp_sandbox"}'


def received_until(sock, end):
    """What comes, up to `end`."""
    received = b""
    while not received.endswith(end):
        received += sock.recv(1)
    return received


def test_interim_replies_come_before_the_final_one(sandbox):
    """Each interim reply has a head of its own and no body; the reply follows after the delay."""
    sandbox.script([{"fault": "interim", "statuses": [100, 102, 103], "delay_s": 0.0}])
    with connect(sandbox, raw_request()) as sock:
        received = received_until(sock, b"HTTP/1.1 200 OK\r\n")
    assert [line for line in received.split(b"\r\n") if line.startswith(b"HTTP/")] == [
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 102 Processing",
        b"HTTP/1.1 103 Early Hints",
        b"HTTP/1.1 200 OK",
    ]


def test_the_final_reply_is_late(sandbox):
    """By default one 103 comes at once and the reply somewhat later."""
    sandbox.script([{"fault": "interim", "delay_s": 3600}])
    with connect(sandbox, raw_request()) as sock:
        assert received_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 103 Early Hints\r\nLink: ")
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)


def test_stray_bytes_follow_a_reply(sandbox):
    """After the reply come bytes that belong to none, by default a whole reply, and the connection stays open."""
    sandbox.script([{"fault": "stray"}, {"fault": "stray", "text": "!?"}])
    with connect(sandbox, raw_request()) as sock:
        received_until(sock, b"\r\n\r\n")
        received_until(sock, b'"content": "stray"}, "finish_reason": "stop"}], "usage": {}}')
        sock.sendall(raw_request())
        assert b"HTTP/1.1 200 OK" in received_until(sock, LAST + b"!?")


@pytest.mark.parametrize(
    ("lengths", "chunked", "head"),
    [
        (["7", "right"], False, b"Content-Length: 7\r\nContent-Length: %d\r\n\r\n{"),
        (["-1"], False, b"Content-Length: -1\r\n\r\n{"),
        (["ten"], True, b"Content-Length: ten\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n{"),
    ],
    ids=["differing", "negative", "and_chunked"],
)
def test_lengths_are_sent_as_they_are(sandbox, lengths, chunked, head):
    """Each Content-Length of the script is sent, right or wrong, and the whole reply after it."""
    sandbox.script([{"fault": "lengths", "lengths": lengths, "chunked": chunked}])
    with connect(sandbox, raw_request()) as sock:
        received = received_until(sock, b"0\r\n\r\n" if chunked else LAST)
    body = received[received.index(b"{") :].removesuffix(b"\r\n0\r\n\r\n")
    assert json.loads(body)["choices"]
    assert (head % len(body) if b"%" in head else head) in received


def test_a_raw_reply_is_sent_as_it_is(sandbox):
    """Any bytes can be a reply: the head of the script, its body or the normal one, and a close if it says so."""
    head = "HTTP/1.1 299 \x1b[1m\r\nX-Folded: a\r\n b\r\nContent-Length: 2\r\n\r\n"
    sandbox.script(
        [{"fault": "raw", "head": head, "body": "\xe9!"}, {"fault": "raw", "head": "", "closes": True}]
    )
    with connect(sandbox, raw_request()) as sock:
        assert received_until(sock, b"!") == head.encode() + b"\xe9!"
        sock.sendall(raw_request())
        received, ended = read_all(sock)
    assert (json.loads(received)["object"], ended) == ("chat.completion", "fin")


@pytest.mark.parametrize("says", [..., "utf-8", ""], ids=["truly", "wrongly", "silently"])
def test_a_charset(sandbox, http_, says):
    """The reply's bytes are in the charset, and its Content-Type says so, or something else, or nothing."""
    entry = {"fault": "charset", "charset": "gbk", "says": says}
    sandbox.script([{name: value for name, value in entry.items() if value is not ...}])
    response = ask(http_, sandbox)
    kind = {...: "; charset=gbk", "utf-8": "; charset=utf-8", "": ""}[says]
    assert response.headers["Content-Type"] == f"application/json{kind}"
    said = json.loads(response.content.decode("gbk"))["choices"][0]["message"]["content"]
    assert said == "沙盒已收到：「测试提示词 7」"


def test_a_redirect(sandbox, http_):
    """The reply names another place, by default with status 302."""
    sandbox.script([{"fault": "redirect", "location": "/v1/chat/completions", "status": 307}])
    response = ask(http_, sandbox)
    assert [reply.status_code for reply in response.history] == [307]
    assert choice(response)["message"]["content"] == "沙盒已收到：「测试提示词 7」"


@pytest.mark.skipif(sys.platform != "linux", reason="packets are dropped by a filter of Linux")
def test_a_connection_vanishes(sandbox):
    """After the reply no packet of the connection is taken any more, while a new one works."""
    sandbox.script([{"fault": "vanish_after_reply"}])
    with connect(sandbox, raw_request()) as sock:
        received_until(sock, LAST)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 250)
        sock.sendall(raw_request())
        with pytest.raises(TimeoutError, match="timed out"):
            sock.recv(1)
        with connect(sandbox, raw_request()) as other:
            assert received_until(other, b"\r\n") == b"HTTP/1.1 200 OK\r\n"


def test_the_script_can_be_asked_for_its_faults(sandbox, http_):
    """GET /sandbox/script says what each fault's entry may hold."""
    language = http_.get(sandbox.url + "/sandbox/script", timeout=GIVE_UP_S).json()["faults"]
    assert language["charset"]["charset"] == "the name of a charset, required"
    assert language["ok"].keys() == {"fault", "times", "latency_ms"}


@pytest.mark.parametrize(
    "entry",
    [
        {"fault": "interim", "statuses": [101]},
        {"fault": "interim", "statuses": []},
        {"fault": "interim", "delay_s": -1},
        {"fault": "lengths", "lengths": [7]},
        {"fault": "lengths"},
        {"fault": "charset", "charset": "klingon"},
        {"fault": "charset", "charset": "gbk", "says": "a\r\nb"},
        {"fault": "redirect", "location": "a\r\nb"},
        {"fault": "redirect", "location": "/", "status": 200},
        {"fault": "raw"},
    ],
    ids=str,
)
def test_wrong_parameters(sandbox, entry):
    """A value that cannot be sent is refused when it is scripted."""
    with pytest.raises(ValueError, match=r"replies\[0\]\."):
        sandbox.script([entry])
