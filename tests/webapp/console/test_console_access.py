"""Who may use the console."""

from __future__ import annotations

import pytest

from webapp.console import create_console
from webapp.console.sample import Sample, Worker
from webapp.console.watching import Watch

TOKEN = "a-token-of-the-test"


@pytest.fixture
def client(monkeypatch, tmp_path):
    """The console of an empty directory with a token."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEB_API_TOKEN", TOKEN)
    watch = Watch(lambda at: Sample(at, workers=(Worker(pid=1),)))
    watch.start = watch.sample  # no thread of a test's
    return create_console("http://127.0.0.1:9", hosts=("console.example",), watch=watch).test_client()


def sign_in(client, token=TOKEN, **headers):
    return client.post("/login", data={"token": token}, headers=headers)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil:5001",
        "console.example.",
        "[::2]:5001",
        "a b",
        "",
    ],
)
def test_other_names_are_refused(client, host):
    """What a stranger's name leads here, as in DNS rebinding, is refused before anything else."""
    assert client.get("/login", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize(
    "host", ["127.0.0.1:5001", "localhost", "LOCALHOST:8001", "[::1]:5001", "console.example"]
)
def test_names_of_the_console(client, host):
    """Loopback at any port, also that of a tunnel, and the names that it was given are its own."""
    assert client.get("/login", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/data", "/findings", "/metrics", "/try", "/nowhere"])
def test_without_the_token_there_is_nothing(client, path):
    """Each route wants the token; the page leads to where it can be given."""
    answer = client.open(path, method="POST" if path == "/try" else "GET")
    assert answer.status_code == 401
    assert client.get("/").headers["Location"] == "/login"


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], "标记"])
def test_wrong_tokens(client, token):
    """A wrong token opens nothing, in the form and in the header."""
    assert sign_in(client, token).status_code == 401
    assert client.get("/data").status_code == 401
    header = {"Authorization": f"Bearer {token.encode().decode('latin-1')}"}
    assert client.get("/data", headers=header).status_code == 401


def test_token_in_the_header(client):
    """A program such as Prometheus sends the token as an application's caller does."""
    assert client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_session(client):
    """The form gives a cookie that scripts and other sites do not get, and that is not the token."""
    answer = sign_in(client)
    cookie = answer.headers["Set-Cookie"]
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert client.get("/data").status_code == 200


def test_session_ends_with_the_token(client, monkeypatch):
    """A new token in the deployment's settings ends the sessions of the old one."""
    sign_in(client)
    monkeypatch.setenv("WEB_API_TOKEN", "another-token")
    assert client.get("/data").status_code == 401


def test_session_ends_after_a_day(client):
    """A cookie is good for twelve hours, whatever the browser makes of that."""
    access = client.application.extensions["console"].access
    sign_in(client)
    access._clock = lambda: 4_000_000_000.0
    assert client.get("/data").status_code == 401


@pytest.mark.parametrize("cookie", ["", ".", "9999999999.", "9999999999.0", "x.y", "é.é"])
def test_made_up_cookies(client, cookie):
    """A cookie that the console has not made opens nothing and breaks nothing."""
    client.set_cookie("deepseek_console", cookie)
    assert client.get("/data").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_pages_send_nothing(client, headers):
    """A page of another site, or of another port of this machine, makes no call and signs nobody in."""
    sign_in(client)
    assert client.post("/try", json={}, headers=headers).status_code == 403
    assert sign_in(client, **headers).status_code == 403


def test_env_file_that_cannot_be_read(client, tmp_path):
    """Where nobody knows the token nobody is let in."""
    (tmp_path / ".env").mkdir()
    assert client.get("/data", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 503


def test_answers_are_sealed(client):
    """No answer may be embedded, kept, or load anything from elsewhere or from within the page."""
    for path in ("/login", "/data", "/static/console.js"):
        with client.get(path) as answer:
            headers = answer.headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
