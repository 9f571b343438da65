from dataclasses import replace

import pytest

from webapp.app import create_app

TOKEN = "s3cret-token"


@pytest.fixture
def client(settings):
    """A client of an app that wants a token."""
    return create_app(replace(settings, web_api_token=TOKEN)).test_client()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_the_token_opens(client, scheme):
    """With the token a request is answered."""
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    assert client.post("/api/llm/chat", json={"prompt": "x"}, headers=headers).status_code == 200
    assert client.get("/api/llm/status", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer 修"],
    ids=["none", "empty", "no-token", "blank", "longer", "shorter", "basic", "no-scheme", "chinese"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["chat", "chat/sync", "parse", "batch", "status", "no/such"])
def test_without_it_nothing_is_done(client, sandbox, path, given):
    """Without it /api/llm/* is 401 and says what is wanted, before the body is looked at; nothing is sent."""
    headers = {} if given is None else {"Authorization": given.encode().decode("latin-1")}
    answer = client.post(f"/api/llm/{path}", data="not JSON", headers=headers)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.get_json() == {
        "error": "Need the header Authorization: Bearer with the token.",
        "code": "unauthorized",
        "text": "",
    }
    assert TOKEN not in answer.text
    assert sandbox.stats()["requests"] == 0


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_are_open(client, path):
    """What a load balancer and Prometheus ask needs no token, and does not show it."""
    answer = client.get(path)
    assert answer.status_code == 200
    assert TOKEN not in answer.text


def test_without_a_setting_everybody_may_ask(settings):
    """A deployment without a token answers as before, whatever the header says."""
    client = create_app(settings).test_client()
    headers = {"Authorization": "Bearer anything"}
    assert client.post("/api/llm/chat", json={"prompt": "x"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://localhost"},
        # Behind a proxy the name in the Host header may be another than the browser's.
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://game.example"},
    ],
    ids=["no_browser", "typed", "same_host", "behind_a_proxy"],
)
def test_page_of_its_own(settings, headers):
    """Without a token a program and a page of the server's own may ask."""
    answer = create_app(settings).test_client().post("/api/llm/chat", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 200


def test_token_opens_from_elsewhere(client):
    """With the token a page of another site may ask: nobody else could have given it that."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": "cross-site"}
    assert client.post("/api/llm/chat", json={"prompt": "x"}, headers=headers).status_code == 200
