"""Bytes that no client of ours sends, against the real gunicorn: it refuses them, logs none, and serves the next."""

import json
import re
import socket
import sys

import pytest
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import running

GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "webapp/gunicorn.conf.py", "webapp.wsgi:app"]

SECRET = b"SECRET-prompt"
BODY = b'{"prompt": "' + SECRET + b'"}'
LIMIT = 1024 * 1024
POST = b"POST /api/llm/chat HTTP/1.1\r\nHost: x\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
CLOSE = b"Connection: close\r\n"


def sized(body, declared=None):
    """The end of a head, and a body whose length the head tells, or gets wrong."""
    return b"Content-Length: %d\r\n\r\n" % (len(body) if declared is None else declared) + body


def chunked(chunks):
    """The end of a head, and what stands for chunks."""
    return b"Transfer-Encoding: chunked\r\n\r\n" + chunks


# What is sent, and the statuses that are right; None is an end without an answer.
SHAPES = {
    "nothing": (b"", {None}),
    "line_ends": (b"\r\n\r\n\r\n", {None, 400}),
    "no_http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SECRET + b"\r\n\r\n", {None, 400}),
    "http_0_9": (b"GET /health\r\n\r\n", {None, 400}),
    "http_1_0": (b"GET /health HTTP/1.0\r\n\r\n", {200}),
    "http_1_0_keep_alive": (b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", {200}),
    "http_9": (b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n", {200, 400}),
    "no_host": (b"GET /health HTTP/1.1\r\n" + CLOSE + b"\r\n", {200, 400}),
    "two_hosts": (GET + b"Host: y\r\n" + CLOSE + b"\r\n", {200, 400}),
    "foreign_host": (b"GET /health HTTP/1.1\r\nHost: [::1\x00/@\r\n" + CLOSE + b"\r\n", {200, 400}),
    "long_path": (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {400, 414}),
    "huge_header": (GET + b"X: " + b"x" * 70_000 + b"\r\n\r\n", {400, 431}),
    "many_headers": (GET + b"".join(b"X-%d: x\r\n" % number for number in range(300)) + b"\r\n", {400, 431}),
    "no_colon": (GET + SECRET + b"\r\n\r\n", {400}),
    "folded_header": (GET + b"X: a\r\n " + SECRET + b"\r\n" + CLOSE + b"\r\n", {200, 400}),
    "nul_in_header": (GET + b"X: a\x00b\r\n" + CLOSE + b"\r\n", {200, 400}),
    "nul_in_path": (b"GET /\x00 HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", {400, 404}),
    "encoded_nul": (b"GET /%00 HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", {400, 404}),
    "bytes_in_path": (b"GET /\xff\xfe\xe4 HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", {400, 404}),
    "chinese_path": ("GET /修仙 HTTP/1.1\r\nHost: x\r\n".encode() + CLOSE + b"\r\n", {400, 404}),
    "broken_escape": (b"GET /%zz%u1234 HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", {400, 404}),
    "absolute_target": (b"GET http://elsewhere/health HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", {200, 400, 404}),
    "no_target": (b"GET  HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", {400, 404}),
    "authority_target": (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", {400, 404, 405}),
    "options_of_all": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", {200, 400, 404}),
    "trace": (b"TRACE /health HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", {400, 404, 405}),
    "lower_case": (b"post /api/llm/chat HTTP/1.1\r\nHost: x\r\n" + CLOSE + sized(BODY), {400, 404, 405}),
    "own_method": (b"SPELL /health HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", {400, 404, 405}),
    "lone_line_feeds": (b"GET /health HTTP/1.1\nHost: x\n\n", {None, 400}),
    "lone_carriage_returns": (b"GET /health HTTP/1.1\rHost: x\r\r", {None, 400}),
    "carriage_return_in_header": (GET + b"X: a\rb: c\r\n" + CLOSE + b"\r\n", {200, 400}),
    "two_lengths": (POST + CLOSE + b"Content-Length: 5\r\n" + sized(BODY), {400}),
    "list_of_lengths": (POST + CLOSE + b"Content-Length: 5, 5\r\n\r\n" + BODY, {400}),
    "negative_length": (POST + CLOSE + b"Content-Length: -5\r\n\r\n" + BODY, {400}),
    "signed_length": (POST + CLOSE + b"Content-Length: +5\r\n\r\n" + BODY, {400}),
    "length_that_is_none": (POST + CLOSE + b"Content-Length: x\r\n\r\n" + BODY, {400}),
    "length_of_many_digits": (POST + CLOSE + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + BODY, {400, 413}),
    "length_and_chunks": (POST + CLOSE + b"Content-Length: 5\r\n" + chunked(b"0\r\n\r\n"), {400}),
    "chunks_of_http_1_0": (b"POST /api/llm/chat HTTP/1.0\r\n" + chunked(b"0\r\n\r\n"), {400}),
    "unknown_coding": (POST + CLOSE + b"Transfer-Encoding: gzip\r\n\r\n" + BODY, {400, 501}),
    "coding_twice": (POST + CLOSE + b"Transfer-Encoding: chunked\r\n" + chunked(b"0\r\n\r\n"), {400}),
    "chunk_size_of_many_digits": (POST + CLOSE + chunked(b"F" * 6000 + b"\r\n" + SECRET), {400, 413}),
    "chunk_extension": (POST + CLOSE + chunked(b"2;" + SECRET + b"=1\r\n{}\r\n0\r\n\r\n"), {400}),
    "one_byte_too_many": (POST + CLOSE + sized(b" " * (LIMIT + 1)), {413}),
    "one_byte_too_many_in_chunks": (
        POST + CLOSE + chunked(b"100001\r\n" + b" " * (LIMIT + 1) + b"\r\n0\r\n\r\n"), {413},
    ),
    "truncated": (POST + sized(BODY, len(BODY) + 9), {None, 400}),
    "truncated_chunk": (POST + chunked(b"50\r\n" + BODY), {None, 400}),
    "expects": (POST + CLOSE + b"Expect: 100-continue\r\n" + sized(b"{}"), {400}),
    "expects_something_else": (POST + CLOSE + b"Expect: a-miracle\r\n" + sized(b"{}"), {400, 417}),
    "upgrade": (GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", {200, 400}),
    "body_of_a_get": (GET + CLOSE + sized(BODY), {200}),
    "length_too_small": (POST + sized(b"{}") + SECRET + b"\r\n\r\n", {400}),
    "more_than_the_body": (POST + CLOSE + sized(b"{}") + SECRET + b"\r\n\r\n", {400}),
}  # fmt: skip
over_shapes = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture(scope="module", params=["1", "4"], ids=["sync", "gthread"])
def server(serving, request):
    """The webapp under gunicorn, over a sandbox that counts what reaches it."""
    with running() as sandbox:
        upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}
        with serving(GUNICORN, WEB_CONCURRENCY="1", WEB_THREADS=request.param, **upstream) as server:
            server.sandbox = sandbox
            yield server


def exchange(server, raw, half_close=True):
    """What the server sends for these bytes until it closes; the client closes its half, or all, after them."""
    with socket.create_connection(("127.0.0.1", server.port), GIVE_UP_S) as connection:
        try:
            connection.sendall(raw)
            if not half_close:
                return b""
            connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):  # refused before it was read
            pass
        received = b""
        try:
            while some := connection.recv(65536):
                received += some
        except ConnectionResetError:  # it closed with bytes of ours unread; what came before may be lost
            pass
        return received


def statuses_in(received):
    """The statuses of the answers, interim ones left out."""
    found = [int(status) for status in re.findall(rb"^HTTP/\d\.\d (\d{3}) ", received, re.M)]
    return [status for status in found if status >= 200]


def said_since(server, mark):
    """What the server has logged after the mark."""
    return server.output.read_bytes()[mark:]


@over_shapes
def test_shape(server, shape):
    """It is answered as HTTP wants it, in the error shape, without a traceback; nothing of it is logged or sent on."""
    raw, right = SHAPES[shape]
    mark = len(server.output.read_bytes())
    received = exchange(server, raw)
    statuses = statuses_in(received)
    assert set(statuses or [None]) <= right | ({None} if len(raw) > LIMIT else set())
    if statuses and statuses[-1] >= 400:
        answer = json.loads(received.rpartition(b"\r\n\r\n")[2])
        assert answer == {"error": answer["error"], "code": answer["code"], "text": ""}
        assert SECRET not in received
    assert server.answers()
    said = said_since(server, mark)
    assert b"Traceback" not in said + received
    assert SECRET not in said
    assert server.sandbox.stats()["requests"] == 0


@over_shapes
def test_client_that_leaves(server, shape):
    """A client that is gone right after its bytes leaves no traceback, and the next one is served."""
    mark = len(server.output.read_bytes())
    exchange(server, SHAPES[shape][0], half_close=False)
    assert server.answers()
    said = said_since(server, mark)
    assert b"Traceback" not in said
    assert SECRET not in said


def test_pipelined(server):
    """Of two requests sent at once each answer is its own, or the connection ends after the first."""
    received = exchange(server, GET + b"\r\n" + b"GET /nowhere HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")
    assert statuses_in(received) in ([200], [200, 404])


def test_expect_continue(server):
    """A client that waits for 100 Continue before its body gets it, and then its answer."""
    head = POST + CLOSE + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), GIVE_UP_S) as connection:
        connection.sendall(head)
        with connection.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 100 ")
            connection.sendall(b"{}")
            assert 400 in statuses_in(answer.read())
