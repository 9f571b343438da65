import logging
from pathlib import Path

import pytest

from deepseek_client import Settings
from webapp.app import create_app

pytestmark = pytest.mark.usefixtures("each_engine")

KEY = "sk-SECRET-0123-tail"
UPSTREAM_TEXT = f"Authentication Fails, Your api key: {KEY} is invalid, see /srv/upstream/gateway.py"


def status_fault(status, **headers):
    """A reply of the sandbox with this status, whose body tells what must not come out."""
    return {"fault": "status", "status": status, "body": UPSTREAM_TEXT, "headers": headers}


REJECTED, UNAVAILABLE = (502, "upstream_rejected"), (502, "upstream_unavailable")
DENIED, LIMITED = (502, "authentication_failed"), (503, "rate_limited")
CUT, BAD = (502, "connection_failed"), (502, "bad_reply")
FAULTS = {
    "400": (status_fault(400), REJECTED, "The API refused the request as malformed (HTTP 400)."),
    "401": (status_fault(401), DENIED, "The API does not accept the API key (HTTP 401)."),
    "402": (
        status_fault(402),
        (502, "insufficient_balance"),
        "The API reports an insufficient balance (HTTP 402).",
    ),
    "403": (
        status_fault(403),
        DENIED,
        "The API does not permit this API key to make the request (HTTP 403).",
    ),
    "404": (status_fault(404), REJECTED, "The API does not know the address or the model (HTTP 404)."),
    "418": (status_fault(418), REJECTED, "The API cannot answer the request (HTTP 418)."),
    "422": (status_fault(422), REJECTED, "The API refused a parameter of the request (HTTP 422)."),
    "429": (status_fault(429), LIMITED, "The API refuses more requests for now (HTTP 429)."),
    "500": (status_fault(500), UNAVAILABLE, "The API cannot answer the request (HTTP 500)."),
    "502": (status_fault(502), UNAVAILABLE, "The API cannot answer the request (HTTP 502)."),
    "503": (status_fault(503), UNAVAILABLE, "The API cannot answer the request (HTTP 503)."),
    "504": (status_fault(504), UNAVAILABLE, "The API cannot answer the request (HTTP 504)."),
    "close_before_reply": (
        {"fault": "close_before_reply", "times": 2},
        CUT,
        "The connection to the API failed.",
    ),
    "reset_before_reply": (
        {"fault": "reset_before_reply", "times": 2},
        CUT,
        "The connection to the API failed.",
    ),
    "cut_body": ({"fault": "cut_body"}, CUT, "The connection to the API failed."),
    "reset_in_body": ({"fault": "reset_in_body"}, CUT, "The connection to the API failed."),
    "blank": ({"fault": "blank"}, BAD, "The API answered 200 with a blank body."),
    "html": ({"fault": "html"}, BAD, "The API answered 200 with something that is not a JSON object."),
    "truncated_json": (
        {"fault": "truncated_json"},
        BAD,
        "The API answered 200 with something that is not a JSON object.",
    ),
    "no_choices": (
        {"fault": "no_choices"},
        BAD,
        "The API answered 200 without a choice that holds a message.",
    ),
    "empty_choices": (
        {"fault": "empty_choices"},
        BAD,
        "The API answered 200 without a choice that holds a message.",
    ),
    "null_content": ({"fault": "null_content"}, BAD, "The API answered 200 with blank content."),
    "blank_content": ({"fault": "blank_content"}, BAD, "The API answered 200 with blank content."),
    "content_filter": ({"fault": "content_filter"}, BAD, "The API answered 200 with blank content."),
    "no_resources": (
        {"fault": "insufficient_system_resource"},
        BAD,
        "The API cut its answer short for lack of resources.",
    ),
}
REQUESTS = {
    "chat": ("chat", {"prompt": "你好"}),
    "chat_sync_mode": ("chat", {"prompt": "你好", "async": False}),
    "chat_sync": ("chat/sync", {"prompt": "你好"}),
    "parse": ("parse", {"utterance": "打开背包"}),
    "parse_sync": ("parse/sync", {"utterance": "打开背包"}),
}
over_requests = pytest.mark.parametrize(
    ("path", "body"), [pytest.param(*request, id=name) for name, request in REQUESTS.items()]
)
UNEXPECTED = {
    "error": "The server could not answer the request.",
    "code": "internal_server_error",
    "text": "",
}


@pytest.fixture
def client(sandbox):
    """A client of the app over the sandbox, with a key that must never be seen."""
    env = {"DEEPSEEK_API_KEY": KEY, "DEEPSEEK_BASE_URL": sandbox.url, "LLM_MAX_ATTEMPTS": "1"}
    return create_app(Settings.from_env(env)).test_client()


def inside_of(answer, *more):
    """The words in an answer that its receiver must not see."""
    whole = f"{answer.headers}\n{answer.text}"
    words = [KEY, KEY[-4:], "Traceback", "/srv/", ".py", str(Path(__file__).parents[2]), "127.0.0.1", *more]
    return [word for word in words if word in whole]


@over_requests
@pytest.mark.parametrize(
    ("fault", "expected", "message"), [pytest.param(*fault, id=name) for name, fault in FAULTS.items()]
)
def test_failure_of_the_api(client, sandbox, path, body, fault, expected, message):
    """Each way in which the API fails has its status, code and sentence, on every route, and nothing internal."""
    sandbox.script([fault])
    answer = client.post(f"/api/llm/{path}", json=body)
    status, code = expected
    assert answer.get_json() == {"error": message, "code": code, "text": ""}
    assert answer.status_code == status
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert inside_of(answer, sandbox.url) == []


@pytest.mark.parametrize(
    ("fault", "expected", "message"), [pytest.param(*fault, id=name) for name, fault in FAULTS.items()]
)
def test_failure_of_the_api_in_a_batch(client, sandbox, fault, expected, message):
    """In a batch the same failure stands in its prompt's place with the same code and sentence."""
    sandbox.script([fault])
    answer = client.post("/api/llm/batch", json={"requests": [{"prompt": "你好"}]})
    assert answer.status_code == 200
    assert answer.get_json()["results"] == [{"error": message, "code": expected[1], "success": False}]
    assert inside_of(answer, sandbox.url) == []


@over_requests
@pytest.mark.parametrize(
    ("headers", "retry_after"),
    [
        pytest.param({}, "1", id="without"),
        pytest.param({"Retry-After": "7"}, "7", id="seconds"),
        pytest.param({"Retry-After": "0"}, "1", id="zero"),
        pytest.param({"Retry-After": "9" * 20}, "3600", id="for_ever"),
        pytest.param({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "1", id="date_in_the_past"),
        pytest.param({"Retry-After": "soon"}, "1", id="not_understood"),
        pytest.param({"Retry-After": "-5"}, "1", id="negative"),
    ],
)
def test_rate_limit(client, sandbox, path, body, headers, retry_after):
    """A 429 of the API is a 503 that hands on its Retry-After in whole seconds, 1 when there is none."""
    sandbox.script([status_fault(429, **headers)])
    answer = client.post(f"/api/llm/{path}", json=body)
    assert (answer.status_code, answer.get_json()["code"]) == (503, "rate_limited")
    assert answer.headers.getlist("Retry-After") == [retry_after]


@pytest.mark.parametrize("path", ["parse", "parse/sync"])
@pytest.mark.parametrize("text", ["好的。", "[]", "null", '{"intent": "attack"', "```json\n17\n```"])
def test_parse_reply_that_is_not_an_object(client, sandbox, path, text):
    """A model that answers a parse prompt with anything but a JSON object is a bad_reply, not an intent."""
    sandbox.script([{"fault": "content", "text": text}])
    answer = client.post(f"/api/llm/{path}", json={"utterance": "打开背包"})
    assert answer.get_json() == {
        "error": "The API answered with text that is not the JSON object that was asked for.",
        "code": "bad_reply",
        "text": "",
    }
    assert answer.status_code == 502


@over_requests
def test_no_key(sandbox, path, body):
    """Without a key a call is not_configured, and nothing is sent."""
    client = create_app(Settings.from_env({"DEEPSEEK_BASE_URL": sandbox.url})).test_client()
    answer = client.post(f"/api/llm/{path}", json=body)
    assert answer.get_json() == {
        "error": "Nothing was sent: the API key is missing or has characters that no key has.",
        "code": "not_configured",
        "text": "",
    }
    assert (answer.status_code, sandbox.stats()["requests"]) == (500, 0)


@over_requests
def test_nobody_listens(path, body):
    """An address where nobody listens is a connection_failed that does not tell the address."""
    env = {"DEEPSEEK_API_KEY": KEY, "DEEPSEEK_BASE_URL": "http://127.0.0.1:1", "LLM_MAX_ATTEMPTS": "1"}
    answer = create_app(Settings.from_env(env)).test_client().post(f"/api/llm/{path}", json=body)
    message = "The connection to the API failed."
    assert answer.get_json() == {"error": message, "code": "connection_failed", "text": ""}
    assert answer.status_code == 502
    assert inside_of(answer) == []


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async_view", "sync_view"])
def test_unexpected_exception(settings, asynchronous, caplog):
    """An exception that nobody foresaw is a 500 in JSON that tells nothing of it; the log tells it all."""

    def view():
        raise RuntimeError(UPSTREAM_TEXT)

    async def view_async():
        raise RuntimeError(UPSTREAM_TEXT)

    app = create_app(settings)
    app.add_url_rule("/", view_func=view_async if asynchronous else view)
    with caplog.at_level(logging.ERROR):
        answer = app.test_client().get("/")
    assert (answer.status_code, answer.get_json()) == (500, UNEXPECTED)
    assert inside_of(answer, "RuntimeError") == []
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize("path", ["chat", "chat/sync", "parse", "parse/sync", "batch"])
def test_defect_of_ours(client, monkeypatch, path):
    """A defect below a route is a 500 in JSON without internals; in a batch too, it is not a failed prompt."""

    def broken(*args, **kwargs):
        raise TypeError(UPSTREAM_TEXT)

    monkeypatch.setattr("deepseek_client.deepseek.outcome_of", broken)
    body = {"prompt": "x", "utterance": "x", "requests": [{"prompt": "x"}]}
    answer = client.post(f"/api/llm/{path}", json=body)
    assert (answer.status_code, answer.get_json()) == (500, UNEXPECTED)
    assert inside_of(answer, "TypeError") == []


@pytest.mark.parametrize(
    "path",
    ["/", "/nothing", "/api", "/api/llm", "/api/llm/", "/api/llm/chat/", "/api/llm/nothing", "/static/x"],
)
def test_unknown_path(client, path):
    """A path that does not exist is a 404 in JSON."""
    answer = client.get(path)
    assert answer.get_json() == {
        "error": "The requested URL was not found on the server. If you entered the URL manually please check "
        "your spelling and try again.",
        "code": "not_found",
        "text": "",
    }
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/llm/chat", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("DELETE", "/api/llm/chat", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("GET", "/api/llm/chat/sync", {"POST", "OPTIONS"}),
        ("GET", "/api/llm/parse", {"POST", "OPTIONS"}),
        ("GET", "/api/llm/parse/sync", {"POST", "OPTIONS"}),
        ("GET", "/api/llm/batch", {"POST", "OPTIONS"}),
        ("POST", "/api/llm/status", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/health", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/ready", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/metrics", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_wrong_method(client, method, path, allowed):
    """A method that a route does not have is a 405 in JSON whose Allow header names those it has."""
    answer = client.open(path, method=method, json={"prompt": "x"})
    assert answer.get_json() == {
        "error": "The method is not allowed for the requested URL.",
        "code": "method_not_allowed",
        "text": "",
    }
    assert (answer.status_code, set(answer.allow)) == (405, allowed)


def test_doubled_slashes_are_not_redirected(client):
    """A path with doubled slashes is a 404, not a redirect that repeats whatever Host header came."""
    answer = client.post("//api/llm//chat", json={"prompt": "x"}, headers={"Host": "evil.example"})
    assert (answer.status_code, answer.get_json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/no/such", 404),
        ("DELETE", "/api/llm/chat", 405),
        ("POST", "/api/llm/chat", 400),
    ],
)
def test_every_answer_is_sealed(client, method, path, status):
    """Errors too have an id, and say that browsers must neither render, embed nor keep them."""
    answer = client.open(path, method=method)
    assert answer.status_code == status
    assert len(answer.headers["X-Request-ID"]) == 32
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
