"""What the doctor says of the queue's server: real ones, set up well and badly."""

import os
import signal
import socket
from types import SimpleNamespace

import pytest
import redis
from support.diagnoses import KEY, TOKEN
from support.queue_servers import PROGRAMS, program

from deepseek_client.ops import worker
from deepseek_client.ops.doctor import examine, queue, read
from deepseek_client.tasks import broker


@pytest.fixture(params=PROGRAMS)
def server(request, monkeypatch, tmp_path):
    """A server of the queue that is set up as it should be: its URL, a connection, its process."""
    path = program(request.param)
    monkeypatch.setattr(broker, "server_program", lambda: path)
    own = broker.Broker(tmp_path / "queue")
    process = own.launch()
    try:
        own.wait_until_ready(process)
        with redis.Redis.from_url(own.url, protocol=2) as client:
            client.config_set("appendfsync", "always")
            yield SimpleNamespace(url=own.url, client=client, process=process)
    finally:
        os.kill(process.pid, signal.SIGCONT)
        own.stop(process)
        own.close()


@pytest.fixture
def findings_for(monkeypatch, deployment):
    """The findings about the queue with this CELERY_BROKER_URL: {(code, level)} and all their texts."""

    def find(url):
        monkeypatch.setenv("DEEPSEEK_API_KEY", KEY)
        monkeypatch.setenv("CELERY_BROKER_URL", url)
        (situation,) = read()
        found = [each for each in examine(situation) if each.code.startswith("queue_")]
        for each in found:
            assert all("\n" not in text for text in (each.what, each.why, each.remedy))
        return {(each.code, each.level) for each in found}, " ".join(map(str, found))

    return find


def test_good_server(findings_for, server):
    """A server that is set up as the documents say brings nothing."""
    assert findings_for(server.url) == (set(), "")


@pytest.mark.parametrize(
    ("name", "value", "code", "level"),
    [
        ("maxmemory-policy", "allkeys-lru", "queue_memory", "error"),
        ("maxmemory", "0", "queue_memory", "hint"),
        ("appendonly", "no", "queue_persistence", "warning"),
        ("appendfsync", "everysec", "queue_persistence", "hint"),
        ("appendfsync", "no", "queue_persistence", "hint"),
    ],
)
def test_setting_of_the_server(findings_for, server, name, value, code, level):
    """A server that evicts, grows without a limit, or writes nothing down is found by its own words."""
    server.client.config_set(name, value)
    found, text = findings_for(server.url)
    assert found == {(code, level)}
    assert server.url.rpartition("@")[2].partition("/")[0] in text


def test_old_server(findings_for, server, monkeypatch):
    """A server below the oldest version that is admitted is an error."""
    monkeypatch.setattr(queue, "_OLDEST", (99, 0))
    found, text = findings_for(server.url)
    assert found == {("queue_version", "error")}
    assert "Redis 99.0 or newer" in text


def test_other_clock(findings_for, server, monkeypatch):
    """A clock that differs by two seconds is a warning."""
    monkeypatch.setattr(queue, "_clock_difference_s", lambda _: -2.0)
    found, text = findings_for(server.url)
    assert found == {("queue_clock", "warning")}
    assert "differs from this machine's by -2.0 s" in text


def test_clock_difference():
    """The difference counts from the middle of the question's way there and back."""
    times = iter((100.0, 104.0))
    clock = SimpleNamespace(time=lambda: next(times))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue, "time", clock)
        assert queue._clock_difference_s(SimpleNamespace(time=lambda: (105, 500_000))) == 3.5


def test_nobody_listens(findings_for):
    """A server that is away is an error that names its address and the reason."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        found, text = findings_for(f"redis://:{TOKEN}@127.0.0.1:{port}/0")
    assert found == {("queue_unreachable", "error")}
    assert f"at 127.0.0.1:{port} does not answer: " in text
    assert "refused" in text
    assert TOKEN not in text


def test_frozen_server(findings_for, server):
    """A server that accepts and says nothing is unreachable, too."""
    os.kill(server.process.pid, signal.SIGSTOP)
    assert findings_for(server.url)[0] == {("queue_unreachable", "error")}


@pytest.mark.parametrize("password", ["", ":wrong-password@"])
def test_wrong_password(findings_for, server, password):
    """A password that the server refuses, or asks for and does not get, is an error that does not show it."""
    found, text = findings_for(f"redis://{password}{server.url.rpartition('@')[2]}")
    assert found == {("queue_unreachable", "error")}
    assert "refuses the user or the password" in text
    assert "wrong-password" not in text


def test_server_that_may_not_be_asked(findings_for, server):
    """A user that may not ask for facts is a hint: the rest of the server may be well."""
    server.client.acl_setuser(
        "limited", enabled=True, passwords=[f"+{TOKEN}"], commands=["+ping", "+select", "+time"]
    )
    found, text = findings_for(server.url.replace(server.url.partition("@")[0], f"redis://limited:{TOKEN}"))
    assert found == {("queue_unreadable", "hint")}
    assert TOKEN not in text


def test_server_that_hides_its_configuration(findings_for, server):
    """A server that tells facts and not its configuration, as hosted ones do, brings no finding for that."""
    server.client.config_set("appendfsync", "everysec")
    server.client.acl_setuser(
        "limited", enabled=True, passwords=[f"+{TOKEN}"], commands=["+ping", "+select", "+time", "+info"]
    )
    url = server.url.replace(server.url.partition("@")[0], f"redis://limited:{TOKEN}")
    assert findings_for(url) == (set(), "")


def test_password_missing_for_another_machine(findings_for, monkeypatch):
    """Another machine's server without a password is a warning; without TLS it is a hint."""
    monkeypatch.setattr(queue, "_server", lambda _: ())
    open_to_all = {("queue_without_password", "warning"), ("queue_in_clear", "hint")}
    assert findings_for("redis://queue.example.org/0")[0] == open_to_all
    assert findings_for(f"redis://:{TOKEN}@queue.example.org/0")[0] == {("queue_in_clear", "hint")}
    assert findings_for(f"rediss://:{TOKEN}@queue.example.org/0")[0] == set()
    assert findings_for("redis://localhost/0")[0] == set()
    assert findings_for("redis+socket:///run/valkey.sock")[0] == set()


def test_extra_is_missing(findings_for, monkeypatch):
    """A queue without the packages that it needs is an error, and nobody is asked."""
    monkeypatch.setattr(worker, "_EXTRA", ("celery_of_nobody", "redis"))
    found, text = findings_for("redis://127.0.0.1:1/0")
    assert found == {("queue_extra", "error")}
    assert "celery_of_nobody cannot be loaded" in text


def test_env_file_with_a_password(findings_for, deployment):
    """A .env that everybody reads is a warning when the queue's address in it has a password."""
    (deployment / ".env").write_text(f"CELERY_BROKER_URL=redis://:{TOKEN}@127.0.0.1:1/0\n")
    (deployment / ".env").chmod(0o644)
    (situation,) = read()
    (finding,) = [each for each in examine(situation) if each.code == "open_env_file"]
    assert "CELERY_BROKER_URL" in finding.what
    (deployment / ".env").write_text("CELERY_BROKER_URL=redis://127.0.0.1:1/0\n")
    (situation,) = read()
    assert [each for each in examine(situation) if each.code == "open_env_file"] == []
