"""Requests that no client of ours sends, as the parser of the real gunicorn hands them to the application."""

import socket
import sys

import pytest
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import running

GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "webapp/gunicorn.conf.py", "webapp.wsgi:app"]

SECRET = b"SECRET-prompt"
MALFORMED_CHUNKS = {
    "no_number": b"zz\r\n" + SECRET + b"\r\n0\r\n\r\n",
    "negative": b"-5\r\n" + SECRET + b"\r\n0\r\n\r\n",
    "no_line_end_after_a_chunk": b"5\r\n" + SECRET + b"\r\n0\r\n\r\n",
    "no_line_end_at_all": b"5" + SECRET,
    "no_size": b"\r\n\r\n",
    "too_many_digits": b"F" * 20 + b"\r\n" + SECRET,
    "cut": b"50\r\n" + SECRET,
    "trailer": b"6\r\nSECRET\r\n0\r\nSECRET bad\r\n\r\n",
}


@pytest.fixture(scope="module", params=["1", "4"], ids=["sync", "gthread"])
def server(serving, request):
    """The webapp under gunicorn, over a sandbox that counts what reaches it."""
    with running() as sandbox:
        upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}
        with serving(GUNICORN, WEB_CONCURRENCY="1", WEB_THREADS=request.param, **upstream) as server:
            server.sandbox = sandbox
            yield server


def exchange(server, raw):
    """What the server sends for these bytes until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), GIVE_UP_S) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            return answer.read()


@pytest.mark.parametrize("chunks", MALFORMED_CHUNKS.values(), ids=MALFORMED_CHUNKS)
def test_malformed_chunks(server, chunks):
    """Chunks that are not well formed are a 400 and one line at most, without what the body said; nothing is sent."""
    before = len(server.output.read_bytes())
    head = b"POST /api/llm/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = exchange(server, head + chunks)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"invalid_request"' in answer
    lines = server.output.read_bytes()[before:]
    assert lines.count(b"\n") <= 1  # gunicorn 21 reads some of them
    assert b"SECRET" not in lines + answer
    assert server.sandbox.stats()["requests"] == 0


def test_script_name(server):
    """A header SCRIPT_NAME from this machine moves no route."""
    request = b"GET %s HTTP/1.1\r\nHost: x\r\nSCRIPT_NAME: /zz\r\nConnection: close\r\n\r\n"
    assert exchange(server, request % b"/health").startswith(b"HTTP/1.1 200 ")
    assert exchange(server, request % b"/zz/health").startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=["cross_site", "cross_site_null", "foreign", "null", "other_port"],
)
def test_page_of_another_site(server, headers):
    """What a web page elsewhere makes a browser post is a 403, and no call."""
    answer = server.ask("POST", "/api/llm/chat", json={"prompt": "x"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "invalid_request")
    assert server.sandbox.stats()["requests"] == 0


def test_head(server):
    """HEAD with a body makes no call."""
    assert server.ask("HEAD", "/api/llm/chat", json={"prompt": "x"}).status_code == 405
    assert server.sandbox.stats()["requests"] == 0
