"""The sandbox told to fail: every fault, and the scripts that ask for it."""

import http.client
import json
from contextlib import closing

import pytest
from asking import ask, choice, connect, error, payload, raw_request, read_all, read_half
from support.patience import GIVE_UP_S

from deepseek_client.sandbox.faults import BODY_FAULTS, WIRE_FAULTS
from deepseek_client.sandbox.script import FAULT_NAMES


def test_every_name_has_its_fault():
    """The names that a script may use are those that something answers."""
    assert {*FAULT_NAMES} == {*BODY_FAULTS, *WIRE_FAULTS, "status", "ok"}


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (400, "but you passed deepseek-chat.", "invalid_request_error"),
        (401, "****_KEY is invalid", "authentication_error"),
        (402, "Insufficient Balance", "unknown_error"),
        (403, "Forbidden", "invalid_request_error"),
        (422, "Invalid parameters", "invalid_request_error"),
        (429, "exceeds your concurrency limit of 2500", "rate_limit_error"),
        (500, "server", "server_error"),
        (502, "Bad Gateway", "server_error"),
        (503, "overloaded", "service_unavailable_error"),
        (599, "Status 599", "server_error"),
    ],
)
def test_status_sends_the_documented_body(sandbox, http_, status, said, kind):
    """A scripted status comes with its documented error body, before model and key are looked at."""
    sandbox.script([{"fault": "status", "status": status}])
    response = ask(http_, sandbox, model="deepseek-chat")
    assert response.status_code == status
    assert said in error(response)["message"]
    assert error(response)["type"] == kind


@pytest.mark.parametrize(
    ("body", "sent"),
    [("<h1>busy</h1>", "<h1>busy</h1>"), ({"a": "忙"}, '{"a":"忙"}')],
    ids=["text", "object"],
)
def test_status_sends_what_the_script_gives(sandbox, http_, body, sent):
    """Headers and body of the script replace the defaults."""
    headers = {"Retry-After": "7", "content-type": "text/plain"}
    sandbox.script([{"fault": "status", "status": 503, "headers": headers, "body": body}])
    response = ask(http_, sandbox)
    assert response.content.decode() == sent
    assert (response.headers["Retry-After"], response.headers["Content-Type"]) == ("7", "text/plain")


@pytest.mark.parametrize(
    ("fault", "content", "finish_reason"),
    [
        ({"fault": "content", "text": "回复"}, "回复", "stop"),
        ({"fault": "content", "text": "", "finish_reason": "tool_calls"}, "", "tool_calls"),
        ({"fault": "fenced"}, "```json\n沙盒已收到：「测试提示词 7」\n```", "stop"),
        ({"fault": "blank_content"}, " " * 16, "stop"),
        ({"fault": "null_content"}, None, "stop"),
        ({"fault": "content_filter"}, "", "content_filter"),
        (
            {"fault": "insufficient_system_resource"},
            "沙盒已收到：「这个回复在中途",
            "insufficient_system_resource",
        ),
    ],
    ids=lambda value: value["fault"] if isinstance(value, dict) else None,
)
def test_scripted_content(sandbox, http_, fault, content, finish_reason):
    """The reply is a success but for its content and finish_reason."""
    sandbox.script([fault])
    got = choice(ask(http_, sandbox))
    assert (got["message"]["content"], got["finish_reason"]) == (content, finish_reason)


@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        ("html", lambda response: response.headers["Content-Type"].startswith("text/html")),
        ("blank", lambda response: response.content == b""),
        ("no_choices", lambda response: "choices" not in response.json() and response.json()["usage"]),
        ("empty_choices", lambda response: response.json()["choices"] == []),
    ],
)
def test_scripted_body(sandbox, http_, fault, broken):
    """The reply is a complete 200, yet it is no completion."""
    sandbox.script([{"fault": fault}])
    response = ask(http_, sandbox)
    assert response.status_code == 200
    assert broken(response)


@pytest.mark.parametrize(
    ("fault", "failure"), [("truncated_json", json.JSONDecodeError), ("invalid_utf8", UnicodeDecodeError)]
)
def test_scripted_body_that_cannot_be_read(sandbox, http_, fault, failure):
    """A cut JSON text is valid UTF-8, and invalid UTF-8 is no cut text: each fails in its own way."""
    sandbox.script([{"fault": fault}])
    response = ask(http_, sandbox)
    assert response.status_code == 200
    with pytest.raises(failure):
        json.loads(response.content.decode())


def test_ok_is_what_an_unscripted_request_gets(sandbox, http_):
    """ok answers normally, and still refuses a retired model or a missing key."""
    sandbox.script([{"fault": "ok", "times": 3}])
    assert choice(ask(http_, sandbox))["message"]["content"] == "沙盒已收到：「测试提示词 7」"
    assert ask(http_, sandbox, model="deepseek-chat").status_code == 400
    assert ask(http_, sandbox, key="").status_code == 401


def test_faults_do_not_look_at_the_request(sandbox, http_):
    """Every other fault is due whatever was asked: no key, a retired model, no messages."""
    sandbox.script([{"fault": "content", "text": "回复"}])
    response = ask(http_, sandbox, key="", model="deepseek-chat", messages="none")
    assert choice(response)["message"]["content"] == "回复"


def test_huge_body_is_valid_json_of_the_size_asked_for(sandbox, http_):
    """The padded body has exactly the size that was asked for, by default 50 MiB, and parses."""
    sandbox.script([{"fault": "huge_body", "bytes": 300_000}, {"fault": "huge_body"}])
    response = ask(http_, sandbox)
    assert len(response.content) == 300_000
    assert choice(response)["message"]["content"] == "沙盒已收到：「测试提示词 7」"
    with connect(sandbox, raw_request()) as sock:
        assert b"Content-Length: 52428800\r\n" in sock.recv(4096)


@pytest.mark.parametrize(
    ("fault", "ending", "in_part"),
    [
        ("reset_before_reply", "reset", False),
        ("close_before_reply", "fin", False),
        ("reset_in_body", "reset", True),
        ("cut_body", "fin", True),
    ],
)
def test_connection_that_breaks(sandbox, fault, ending, in_part):
    """The connection ends by a reset or a FIN, before the reply or in the middle of its body."""
    sandbox.script([{"fault": fault}])
    with connect(sandbox, raw_request()) as sock:
        received, ended = read_all(sock)
    assert ended == ending
    head, _, body = received.partition(b"\r\n\r\n")
    if in_part:
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert head.startswith(b"HTTP/1.1 200")
        assert len(body) == length // 2
    else:
        assert received == b""


@pytest.mark.parametrize("fault", ["hang", "hang_in_body"])
def test_reply_that_hangs(sandbox, fault):
    """Nothing (more) comes, and the call stays in flight until its client goes."""
    sandbox.script([{"fault": fault}])
    with connect(sandbox, raw_request()) as sock:
        sandbox.wait_until(lambda stats: stats["in_flight"] == 1 and stats["scripted"] == 0)
        if fault == "hang_in_body":
            read_half(sock)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(65536)
        assert sandbox.stats()["in_flight"] == 1
    sandbox.wait_until(lambda stats: stats["in_flight"] == 0)


def test_drip_never_ends(sandbox):
    """Headers come, then blank lines, for as long as somebody reads."""
    sandbox.script([{"fault": "drip", "every_s": 0.001}])
    with closing(http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=GIVE_UP_S)) as connection:
        connection.request("POST", "/chat/completions", json.dumps(payload()))
        with connection.getresponse() as response:
            assert response.status == 200
            assert response.read(20) == b"\n" * 20


def test_a_client_that_leaves_is_no_error_of_the_sandbox(sandbox, caplog, monkeypatch):
    """A write that fails because the client has left ends the exchange, and leaves nothing in the log."""

    async def write_too_late(*_):
        raise ConnectionResetError("Cannot write to closing transport")

    monkeypatch.setitem(WIRE_FAULTS, "hang", write_too_late)
    sandbox.script([{"fault": "hang"}])
    with closing(connect(sandbox, raw_request())) as sock:
        assert read_all(sock)[0] == b""
    assert caplog.text == ""


def test_drip_of_some_lines_ends_in_the_reply(sandbox, http_):
    """After so many blank lines the normal reply follows, and the whole still parses."""
    sandbox.script([{"fault": "drip", "lines": 3, "every_s": 0.001}])
    response = ask(http_, sandbox)
    assert response.content.startswith(b"\n\n\n{")
    assert choice(response)["message"]["content"] == "沙盒已收到：「测试提示词 7」"


def test_slow_body_comes_byte_by_byte(sandbox, http_):
    """The reply trickles under a Content-Length: whole in the end, one byte at first."""
    sandbox.script([{"fault": "slow_body", "every_s": 0.0001}, {"fault": "slow_body", "every_s": 3600}])
    assert choice(ask(http_, sandbox))["message"]["content"] == "沙盒已收到：「测试提示词 7」"
    with connect(sandbox, raw_request()) as sock:
        received = b""
        while not received.endswith(b"\r\n\r\n{"):
            received += sock.recv(1)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)


def test_close_after_reply_is_not_announced(sandbox):
    """The reply is complete and promises keep-alive; the connection is closed all the same."""
    sandbox.script([{"fault": "close_after_reply"}])
    with connect(sandbox, raw_request()) as sock:
        received, ended = read_all(sock)
    head, _, body = received.partition(b"\r\n\r\n")
    assert ended == "fin"
    assert b"connection:" not in head.lower()
    assert json.loads(body)["choices"]


def test_script_is_first_in_first_out(sandbox, http_):
    """Entries are taken in order, each as often as it says, and then replies are normal again."""
    replies = [{"fault": "status", "status": 500, "times": 2}, {"fault": "status", "status": 429}]
    queued = http_.post(sandbox.url + "/sandbox/script", json={"replies": replies}, timeout=GIVE_UP_S)
    assert queued.json() == {"scripted": 3}
    assert [ask(http_, sandbox).status_code for _ in range(4)] == [500, 500, 429, 200]


def test_script_can_be_cleared(sandbox, http_):
    """DELETE /sandbox/script drops what is queued."""
    sandbox.script([{"fault": "hang", "times": 5}])
    assert http_.delete(sandbox.url + "/sandbox/script", timeout=GIVE_UP_S).json() == {"scripted": 0}
    assert ask(http_, sandbox).status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[]", 'body: need {"replies": [...]}, got list'),
        ("{", "body: need a JSON object"),
        ("{}", "replies=None: need a list"),
        ('{"replies": [], "more": 1}', "'more' is unknown; known: replies"),
        ('{"replies": [7]}', "replies[0]=7: need an object"),
        (
            '{"replies": [{"fault": "ok"}, {"fault": "boom"}]}',
            "replies[1].fault='boom' is unknown; known: blank,",
        ),
        ('{"replies": [{"fault": ["ok"]}]}', "replies[0].fault=['ok'] is unknown"),
        ('{"replies": [{"fault": "ok", "times": 0}]}', "replies[0].times=0: need a whole number"),
        ('{"replies": [{"fault": "ok", "times": true}]}', "replies[0].times=True: need a whole number"),
        ('{"replies": [{"fault": "ok", "latency_ms": "9"}]}', "replies[0].latency_ms='9': need a number"),
        ('{"replies": [{"fault": "ok", "latency_ms": -1}]}', "replies[0].latency_ms=-1: need a number"),
        ('{"replies": [{"fault": "ok", "status": 500}]}', "replies[0].status=500: ok knows fault, times,"),
        ('{"replies": [{"fault": "status"}]}', "replies[0].status is missing"),
        ('{"replies": [{"fault": "status", "status": 99}]}', "replies[0].status=99: need"),
        (
            '{"replies": [{"fault": "status", "status": 500, "headers": {"a": "b\\r\\nc"}}]}',
            "replies[0].headers=",
        ),
        ('{"replies": [{"fault": "drip", "every_s": 0}]}', "replies[0].every_s=0: need a number above 0"),
        ('{"replies": [{"fault": "content"}]}', "replies[0].text is missing: content needs a string"),
    ],
)
def test_script_that_is_not_understood(sandbox, http_, body, said):
    """A bad script gets a 400 that names the thing, the value and what is known; nothing is queued."""
    response = http_.post(sandbox.url + "/sandbox/script", data=body, timeout=GIVE_UP_S)
    assert response.status_code == 400
    assert error(response)["message"].startswith(said)
    assert sandbox.stats()["scripted"] == 0


def test_script_from_the_same_process_is_checked_too(sandbox):
    """The handle raises the same words as a ValueError."""
    with pytest.raises(ValueError, match=r"replies\[0\].fault='boom' is unknown"):
        sandbox.script([{"fault": "boom"}])
