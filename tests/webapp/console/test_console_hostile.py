"""The console against strangers, broken applications and what is left of dead servers."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import pytest
from support.console_samples import console_of, disconnect
from support.patience import GIVE_UP_S
from support.serving import reply

from webapp.console import create_console
from webapp.console.sample import Sample
from webapp.console.watching import Watch

DEEP = "[" * 100_000


@pytest.fixture
def console(monkeypatch, tmp_path):
    """Builds a console for an application at this address."""
    monkeypatch.chdir(tmp_path)
    watch = Watch(lambda at: Sample(at))
    watch.start = lambda: None
    made = []

    def build(address="http://127.0.0.1:9"):
        made.append(create_console(address, watch=watch))
        return made[-1].test_client()

    yield build
    for each in made:
        disconnect(each)


def tried(client, **form):
    """What came of a form."""
    answer = client.post("/try", json={"kind": "chat", "mode": "async", "text": "x", **form})
    assert answer.status_code == 200, answer.text
    return answer.get_json()


@pytest.mark.parametrize("path", ["/try", "/tasks/cancel"])
def test_deep_json_is_refused(console, path):
    """A body that no parser gets to the end of is a refusal, not an error of the console."""
    answer = console().post(path, data=DEEP, content_type="application/json")
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        DEEP.encode(), b'{"a":' * 50_000, b'{"results": 5}', b'{"results": null}', b'{"results": [null, 3, [], {}]}',
        b'{"text": null}', b'{"text": {"a": 1}}', b'{"intent": []}', b'{"text": "\\ud800"}', b"\xff\xfe", b"", b"null",
        b'{"text": ' + b"9" * 5000 + b"}", b'{"text": NaN}',
    ],
    ids=str,
)  # fmt: skip
def test_any_answer_is_shown_or_told(console, serve, body):
    """Whatever an application answers, the page gets a text or a sentence."""
    report = tried(console(serve(lambda handler: reply(handler, body=body)).url))
    assert isinstance(report["text"], str)
    assert isinstance(report["error"], str)


@pytest.mark.parametrize("facts", ["ran_ms=" + "9" * 6000, "mode=async pid=", "=" * 1000, "\xff\xfe", ""])
def test_any_facts_are_shown_or_left_out(console, serve, facts):
    """What an application says of its calls is believed only where it can be read."""
    server = serve(lambda handler: reply(handler, body=b'{"text": "ok"}', X_LLM_Calls=facts))
    assert tried(console(server.url))["text"] == "ok"


def test_huge_answer_is_told_to_be_one(console, serve):
    """An answer that no reader wants to scroll through is cut, and says so."""
    body = b'{"text": "' + b"x" * 9_000_000 + b'"}'
    report = tried(console(serve(lambda handler: reply(handler, body=body)).url))
    assert "longer than" in report["error"]
    long = b'{"text": "' + b"x" * 7_000_000 + b'"}'
    report = tried(console(serve(lambda handler: reply(handler, body=long)).url))
    assert len(report["text"]) < 300_000
    assert report["text"].endswith("…")


@pytest.mark.parametrize("body", [{"task_id": "\ud800"}, {"task_id": "x" * 400_000}, {"task_id": "a b\n\0"}])
def test_odd_ids_of_tasks(console, monkeypatch, queue, body):
    """An id that no task can have is of no task."""
    monkeypatch.setenv("CELERY_BROKER_URL", queue.url)
    answer = console().post("/tasks/cancel", json=body)
    assert answer.get_json() == {"said": "There is no such task any more."}


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\nHost: evil.example\r\n",
        "GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n",
        "GET / HTTP/1.1\r\nHost: evil.example\r\nHost: 127.0.0.1\r\n",
        "GET / HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: 127.0.0.1\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1 evil.example\r\n",
        "GET / HTTP/1.1\r\nHost: [::ffff:127.0.0.1]\r\n",
        "GET / HTTP/1.1\r\nHost: 0x7f000001\r\n",
        "GET / HTTP/1.1\r\nHost: [\r\n",
    ],
)
def test_hosts_on_the_wire(monkeypatch, tmp_path, head):
    """No way to write a request with a stranger's name in it leads to the page."""
    monkeypatch.chdir(tmp_path)
    with console_of([Sample(1.0)]) as address:
        assert status_of(address, head) == 400


def test_request_without_a_host(monkeypatch, tmp_path):
    """No browser sends one; a program of this machine that does gets the page."""
    monkeypatch.chdir(tmp_path)
    with console_of([Sample(1.0)]) as address:
        assert status_of(address, "GET / HTTP/1.0\r\n") == 200


def status_of(address, head):
    """The status of the answer to a request, byte by byte as given."""
    host, _, port = address.removeprefix("http://").partition(":")
    with closing(socket.create_connection((host, int(port)), GIVE_UP_S)) as connection:
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        return int(connection.makefile("rb").readline().split()[1])


@pytest.mark.parametrize(
    "address",
    [
        *(
            "http://127.0.0.1:x",
            "http://127.0.0.1:99999",
            "http://127.0.0.1:9/前缀",
            "http://",
            "x",
            "http://[",
        ),
        *("ftp://x", "http://a%20b"),
    ],
)
def test_odd_addresses_of_the_application(console, address):
    """An address that is none is told; the page is there all the same."""
    client = console(address)
    assert client.get("/").status_code == 200
    assert address in tried(client)["error"]


def test_many_wrong_tokens_are_logged(console, monkeypatch, caplog):
    """Who tries tokens is seen in the log, in few lines and without the tokens."""
    monkeypatch.setenv("WEB_API_TOKEN", "a-token")
    client = console()
    for number in range(200):
        assert client.post("/login", data={"token": f"guess-{number}"}).status_code == 401
        assert client.get("/data", headers={"Authorization": f"Bearer guess-{number}"}).status_code == 401
    lines = [record.getMessage() for record in caplog.records if "token" in record.getMessage()]
    assert 1 <= len(lines) <= 2
    assert "guess" not in caplog.text


def test_threads_that_look_at_once(console):
    """Several readers of one console get whole answers."""
    client_of = console
    gate, answers = threading.Barrier(4, timeout=GIVE_UP_S), []
    client = client_of()

    def look():
        gate.wait()
        answers.append(client.application.test_client().get("/data").get_json()["number"])

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GIVE_UP_S)
    assert len(answers) == 4
