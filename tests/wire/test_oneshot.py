"""A remembered request is, byte for byte, the one that `requests` would have made."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import random
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from support.patience import GIVE_UP_S
from support.serving import Exchanged

from deepseek_client.wire import adapter, oneshot

CALLS = 300
SEED = 20261126


class Origin(socketserver.ThreadingTCPServer):
    """Keeps each request's bytes; sets a cookie at /cookie, redirects at /301 to /308, answers "ok" at other places."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.received: list[bytes] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Connection(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True
    timeout = GIVE_UP_S
    server: Origin

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            while head := self._lines_to(b"\r\n"):
                self.server.received.append(head + self._body(head.lower()))
                self.wfile.write(self._answer(*head.decode("latin-1").split(" ", 2)))

    def _lines_to(self, last: bytes) -> bytes:
        lines = b""
        while (line := self.rfile.readline()) not in (last, b""):
            lines += line
        return lines

    def _body(self, head: bytes) -> bytes:
        if b"transfer-encoding: chunked" in head:
            return self._lines_to(b"0\r\n") + self.rfile.readline()
        length = re.search(rb"^content-length: ([0-9]+)", head, re.MULTILINE)
        return self.rfile.read(int(length[1])) if length else b""

    def _answer(self, method: str, target: str, *_: str) -> bytes:
        place = target.partition("?")[0].rpartition("/")[2]
        status = place if place in ("301", "302", "303", "307", "308", "401", "503") else "200"
        lines = [f"HTTP/1.1 {status} Whatever", "Content-Type: application/json", "Content-Length: 4"]
        if status[0] == "3":
            lines.append(f"Location: ../{'cookie' if status in ('301', '307') else 'there'}?from={place}")
        if place == "cookie" or status == "302":
            lines.append("Set-Cookie: sword=azure; Path=/")
        return "\r\n".join([*lines, "", "" if method == "HEAD" else '"ok"']).encode()


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server
        server.shutdown()


def fields_of(received: list[bytes]) -> list[dict[str, str]]:
    """The header fields of the requests."""
    return [
        dict(line.split(": ", 1) for line in it.decode().split("\r\n\r\n")[0].splitlines()[1:])
        for it in received
    ]


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was sent without a Session's preparation."""
    sent: list[Any] = []
    send = oneshot._send
    monkeypatch.setattr(oneshot, "_send", lambda *args: sent.append(args[1]) or send(*args))
    return sent


def through(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What the function gives inside of an exchange: its result, or what it raised."""
    adapter.install()
    exchange = Exchanged(lambda: function(*args, **options), deadline=None)()
    return exchange.result if exchange.raised is None else exchange.raised


def usually(*args: Any, **options: Any) -> Any:
    """`requests.request` as it is without this package's memory."""
    return requests.api.request.__wrapped__(*args, **options)


class Proxy:
    """A function's stand-in that lends its attributes, as wrapt's do."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__module__ = "requests.api"

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._function(*args, **options)


def told(outcome: Any) -> Any:
    """All that a caller can learn of an outcome, but for the time it took."""
    if isinstance(outcome, Exception):
        return type(outcome), str(outcome).partition(" object at ")[0]
    of_each = [
        (
            *(it.status_code, it.url, it.reason, it.encoding, it.text, it.cookies.get_dict(), it.is_redirect),
            dict(it.headers),
            *(it.request.method, it.request.url, list(it.request.headers.items()), it.request.body),
            *(it.request._cookies.get_dict(), it.request.hooks, type(it.raw), it.elapsed.total_seconds() > 0),
        )
        for it in [*outcome.history, outcome]
    ]
    return of_each, outcome.ok, list(outcome.links)


def random_calls(url: str, dice: random.Random) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Calls as programs make them, and as they should not: method, URL, options."""
    texts = ["x", "剑", "a b", "é", "%zz", "\r\n", "", "~*", "1" * 3000]
    values: dict[str, list[Any]] = {
        "json": [
            None,
            {},
            [],
            0,
            False,
            "剑",
            {"a": [1, None, "é\ud800"]},
            float("nan"),
            {1: 2},
            {"m": "x" * 5000},
        ],
        "data": [None, "", "text", "剑", b"\0bytes", {"a": "b c"}, [("a", 1)], iter([b"a", b"b"])],
        "headers": [
            *(None, {}, {"Authorization": "Bearer sk-test", "Content-Type": "application/json"}),
            *({"user-agent": "me"}, {"User-Agent": None}, {"X": b"bytes"}, {"X": 1}, {"X": "a\r\nb"}),
            *(
                {"x-A": "1", "X-a": "2"},
                {" lead": "x"},
                {"Host": "elsewhere"},
                {"Cookie": "a=b"},
                {"剑": "é"},
            ),
            *({"Accept": "*/*", "Connection": "close"}, requests.structures.CaseInsensitiveDict(A="b")),
        ],
        "params": [None, {}, {"q": "剑"}, "a=1"],
        "timeout": [GIVE_UP_S, (GIVE_UP_S, GIVE_UP_S), (GIVE_UP_S, 2 * GIVE_UP_S)],
        "cookies": [None, {"c": "d"}],
        "auth": [None, ("user", "pass")],
        "allow_redirects": [True, False],
        "hooks": [{}, {"response": lambda response, **_: None}],
        "stream": [False],
        "verify": [True, False],
    }
    common = ["json", "headers", "data", "timeout"]
    while True:
        names = dice.sample(common, dice.randrange(len(common) + 1))
        if dice.random() < 0.3:
            names += dice.sample([*values.keys() - {*common}], dice.randrange(3))
        options = {"timeout": GIVE_UP_S, **{name: dice.choice(values[name]) for name in names}}
        place = dice.choice(
            ["chat", "chat", "cookie", "301", "302", "303", "307", "308", "401", "503", dice.choice(texts)]
        )
        query = dice.choice(["", "", "?a=b", "?剑=é", "#there"])
        method = dice.choice(["post", "POST", "get", "PUT", "patch", "delete", "head", "options", "剑"])
        yield (
            method,
            f"{dice.choice([url, url.replace('127.0.0.1', 'user:pw@127.0.0.1'), url.upper()])}/{place}{query}",
            options,
        )


def test_random_calls(origin, remembered):
    """Whatever is asked for, the server gets the same bytes, and the caller the same answer or error."""
    calls = random_calls(origin.url, random.Random(SEED))
    for method, url, options in itertools.islice(calls, CALLS):
        is_used_up = "data" in options and hasattr(options["data"], "__next__")
        options = {**options, "data": b"ab"} if is_used_up else options
        expected = told(through(usually, method, url, **options)), [*origin.received]
        origin.received.clear()
        for _ in range(2):  # the second time from memory
            outcome = told(through(requests.request, method, url, **options)), [*origin.received]
            origin.received.clear()
            assert outcome == expected, (method, url, options)
    assert len(remembered) > CALLS / 2


@pytest.mark.parametrize("verb", ["get", "post", "put", "patch", "delete", "options"])
def test_each_verb(origin, remembered, verb):
    """Each of requests' functions is remembered; a Session's method, or a function outside of a call, is not."""
    through(getattr(requests, verb), origin.url)
    assert len(remembered) == 1
    getattr(requests, verb)(origin.url, timeout=GIVE_UP_S)
    through(getattr(requests.Session(), verb), origin.url)
    assert len(remembered) == 1
    first, second, third = origin.received
    assert first == second == third


def test_cookies_are_forgotten(origin):
    """A cookie that one call was given is not sent by the next one, nor is it in the next one's jar."""
    assert through(requests.get, f"{origin.url}/cookie").cookies.get_dict() == {"sword": "azure"}
    assert through(requests.get, f"{origin.url}/cookie").request._cookies.get_dict() == {}
    assert not any("Cookie" in fields for fields in fields_of(origin.received))


def test_a_request_may_be_changed(origin):
    """What a caller does to the request of its answer does not reach the next call."""
    response = through(requests.post, origin.url, json={})
    response.request.headers["X-Mine"] = "1"
    response.request.hooks["response"].append(print)
    through(requests.post, origin.url, json={})
    assert origin.received[0] == origin.received[1]


def test_netrc_counts_at_once(origin, monkeypatch, tmp_path):
    """An entry of netrc that appears, changes or goes counts from the next call on."""
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    for password in (None, "one", "other", None):
        if password is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(f"machine 127.0.0.1 login me password {password}\n")
        through(requests.get, origin.url)
    given = [fields.get("Authorization") for fields in fields_of(origin.received)]
    assert given[0] is given[3] is None
    assert None not in given[1:3]
    assert given[1] != given[2]


def test_user_agent_of_now(origin, monkeypatch):
    """A replaced default_user_agent is asked, also after requests were remembered."""
    through(requests.get, origin.url)
    monkeypatch.setattr(requests.utils, "default_user_agent", lambda: "mine/1")
    through(requests.get, origin.url)
    assert [fields["User-Agent"] == "mine/1" for fields in fields_of(origin.received)] == [False, True]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (requests.Session, "send"),
        (requests.Session, "prepare_request"),
        (requests.Session, "get_adapter"),
        (requests.PreparedRequest, "prepare_body"),
        (requests.adapters.HTTPAdapter, "build_response"),
        (requests.sessions, "PreparedRequest"),
        (requests.sessions, "dispatch_hook"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_replaced_functions_are_asked(origin, remembered, monkeypatch, owner, name):
    """What somebody has put in the place of a function of `requests` is called for each request, and no more after."""
    asked: list[str] = []
    original = getattr(owner, name)

    def theirs(*args: Any, **kwargs: Any) -> Any:
        asked.append(name)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, theirs)
        for _ in range(2):
            assert through(requests.post, origin.url, json={}).status_code == 200
        assert (len(asked), remembered) == (2, [])
    through(requests.post, origin.url, json={})
    assert (len(asked), len(remembered)) == (2, 1)


@pytest.mark.parametrize("lends", [functools.wraps, lambda _: Proxy], ids=["wraps", "proxy"])
def test_instrumented_before_us(origin, remembered, monkeypatch, lends):
    """A function that somebody put in the place of `requests.request` before us is called for each request."""
    adapter.install()
    asked: list[str] = []

    def theirs(method: str, url: str, **options: Any) -> Any:
        asked.append(url)
        return usually(method, url, **options)

    usually = requests.api.request.__wrapped__
    monkeypatch.setattr(requests.api, "request", lends(usually)(theirs))
    monkeypatch.setattr(requests, "request", requests.api.request)
    oneshot.install(adapter._adapter_of_new_session)
    for _ in range(2):
        assert through(requests.post, origin.url, json={}).status_code == 200
    assert (len(asked), remembered) == (2, [])


def test_mocked_before_us(monkeypatch):
    """A mock that stands in the place of `requests.request` alone stays there, and nothing is sent in its stead."""
    adapter.install()
    usual = requests.api.request.__wrapped__
    mock = SimpleNamespace()
    monkeypatch.setattr(requests.api, "request", usual)
    monkeypatch.setattr(requests, "request", mock)
    oneshot.install(adapter._adapter_of_new_session)
    assert requests.request is mock
    assert requests.api.request is not usual
    monkeypatch.setattr(requests.api, "request", usual)
    monkeypatch.setattr(requests, "request", usual)
    oneshot.install(adapter._adapter_of_new_session)
    assert requests.request is requests.api.request is not usual


def test_memory_is_bounded(origin, monkeypatch):
    """A client with a new URL for each call keeps no more than the limit."""
    monkeypatch.setattr(oneshot, "_KEPT", 3)
    for number in range(8):
        through(requests.get, f"{origin.url}/{number}")
    assert len(oneshot.environment.remembered()) <= 3


def test_body_that_is_no_json(origin):
    """What cannot be JSON fails as ever, and nothing is sent."""
    for value in (float("inf"), {"a": object()}):
        expected = told(through(usually, "post", origin.url, json=value))
        assert told(through(requests.post, origin.url, json=value)) == expected
        with pytest.raises(Exception):  # noqa: B017, PT011 - which one is compared above
            json.dumps(value, allow_nan=False)
    assert origin.received == []
