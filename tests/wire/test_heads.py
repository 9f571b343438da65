"""A head that is read or written at once is, to the last attribute, what http.client makes of it."""

from __future__ import annotations

import http.client
import io
import queue
import random
from collections.abc import Callable
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from support.patience import GIVE_UP_S
from support.serving import Exchanged
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.util import SKIP_HEADER

from deepseek_client.wire import adapter, connections, heads, replies

HEADS, LINES, STEPS = 6000, 4000, 2000
SEED = 20261126
BODY = b"0\r\n\r\nand what comes after it"


class Raw(io.BytesIO):
    """What a socket's stream reads from."""

    _sock = None


class Stream:
    """A socket from which a reply has come."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> Any:
        return io.BufferedReader(Raw(self._data))  # type: ignore[type-var]


def pick(dice: random.Random, usual: list[str], odd: list[str]) -> str:
    """One of the usual ones, or now and then an odd one."""
    return dice.choice(odd if dice.random() < 0.04 else usual)


def random_head(dice: random.Random) -> bytes:
    """The head of a reply as servers send it, and as they should not."""
    version = pick(dice, ["HTTP/1.1"], ["HTTP/1.0", "HTTP/0.9", "HTTP/1.2", "HTTP/2", "HTTP/1", "ICY", ""])
    status = pick(dice, ["200", "200", "404", "503"], ["204", "304", "301", "999", "99", "x", "0200", " 200"])
    reason = pick(dice, ["OK", "", "Not Found"], ["  two  words ", "\x1b[31m", "\xe9", "\t"])
    lines = [
        f"{version} {status} {reason}".rstrip(" ") if dice.random() < 0.1 else f"{version} {status} {reason}"
    ]
    for _ in range(dice.choice([0, 1, 2, 4, 8, 8, 20])):
        name = pick(
            dice,
            [
                "Content-Type",
                "content-length",
                "Date",
                "Server",
                "Connection",
                "Set-Cookie",
                "X-Trace",
                "vary",
            ],
            [
                "",
                " ",
                "a b",
                "X\t",
                "\xe9",
                "From ",
                "From",
                "Keep-Alive",
                "X[1]",
                "!#$",
                "Transfer-Encoding",
            ],
        )
        value = pick(
            dice,
            values_of(name.lower()),
            ["", " ", "a\rb", "a\x0bb", "\xff", "a\x00b", "\x85", "x\r\n folded"],
        )
        lines.append(
            name + pick(dice, [": "], [":", ":\t", " : ", ":  ", ""]) + value + pick(dice, [""], [" ", "\t"])
        )
    if dice.random() < 0.3:
        lines.append("Transfer-Encoding: " + dice.choice(["chunked", "Chunked", "gzip, chunked", "identity"]))
    end = pick(dice, ["\r\n"], ["\n", "\r"])
    return end.join([*lines, pick(dice, [end], ["", "\n"])]).encode("latin-1")


def values_of(name: str) -> list[str]:
    """What servers send under a name."""
    return {
        "content-length": [
            "0",
            "5",
            "12345",
            "5",
            "5 ",
            "+5",
            "-5",
            "5, 5",
            "9" * 30,
            "9" * 5000,
            "0x5",
            "٥".encode().decode("latin-1"),
        ],
        "content-type": [
            "application/json",
            "text/html; charset=gbk",
            "multipart/mixed; boundary=x",
            "Message/rfc822",
        ],
        "connection": ["keep-alive", "close", "Upgrade, CLOSE"],
        "transfer-encoding": ["chunked", "deflate"],
    }.get(name, ["x", "Thu, 26 Nov 2026 20:51:18 GMT", "a=b; Path=/", "a: b", "-"])


def read_by(kind: type[http.client.HTTPResponse], head: bytes, method: str) -> dict[str, Any]:
    """All that a reply knows once its head was read, and what is left for its body."""
    reply: Any = kind(Stream(head + BODY), method=method)  # type: ignore[arg-type]
    try:
        reply.begin()
    except http.client.HTTPException as exc:
        return {"raised": type(exc)}
    message = reply.msg
    fields = vars(message).copy()
    fields.pop("_plain", None)
    fields["defects"] = [repr(defect) for defect in message.defects]
    if message.is_multipart():
        fields["_payload"] = [str(part) for part in message.get_payload()]
    names = ("version", "status", "code", "reason", "chunked", "chunk_left", "length", "will_close")
    return {
        **{name: (type(getattr(reply, name)), getattr(reply, name)) for name in names},
        "fields": fields,
        "seen": [message.items(), message.keys(), message.values(), message.get_all("set-cookie")],
        "same": reply.headers is message,
        "rest": reply.fp.read(),
    }


def test_heads_of_replies_are_read_as_http_client_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of heads, usual and odd ones: each attribute, each field and each byte that is left are the same."""
    dice, plain = random.Random(SEED), []
    read: Callable[[bytes], Any] = heads.plain_head
    monkeypatch.setattr(replies, "plain_head", lambda data: plain.append(read(data)) or plain[-1])
    for _ in range(HEADS):
        head, method = random_head(dice), pick(dice, ["POST"], ["HEAD"])
        assert read_by(replies.Reply, head, method) == read_by(http.client.HTTPResponse, head, method), head
    taken = sum(head is not None for head in plain)
    assert HEADS / 5 < taken < HEADS * 4 / 5


@pytest.mark.parametrize("count", [98, 99, 100, 101])
def test_a_head_has_as_many_fields_as_http_client_takes(count: int) -> None:
    """A head with too many fields is the error that http.client makes of it."""
    head = b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * count + b"\r\n"
    assert read_by(replies.Reply, head, "GET") == read_by(http.client.HTTPResponse, head, "GET")


def test_fields_that_are_changed_later_are_what_a_message_makes_of_them() -> None:
    """A field that somebody adds to a head, whatever it holds, is seen as in the head that http.client reads."""
    of_ours, usual = (
        read_by(kind, b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", "GET")["fields"]
        for kind in (replies.Reply, http.client.HTTPResponse)
    )
    assert of_ours == usual
    head = heads.Head([("A", "b")])
    message = http.client.HTTPMessage()
    message["A"] = "b"
    for changed in (head, message):
        changed["B"] = "\udce9"
    assert [str(value) for _, value in head.items()] == [str(value) for _, value in message.items()]
    del head["A"], message["A"]
    assert head.keys() == message.keys()


def test_a_replaced_reader_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder that has put itself in the place of http.client's reader sees each head."""
    seen = []

    def parse_headers(stream: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(stream)
        return original(stream, *args, **kwargs)

    original = http.client.parse_headers
    monkeypatch.setattr(http.client, "parse_headers", parse_headers)
    assert read_by(replies.Reply, b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", "GET")["seen"][0] == [("A", "b")]
    assert len(seen) == 1


def written_by(kind: type[HTTPConnection], fields: list[tuple[Any, ...]]) -> Any:
    """The bytes of a head with these fields, or what was raised."""
    sent: list[bytes] = []
    conn: Any = kind("host.example")
    conn.send = sent.append
    conn._writes_lines = True  # of ours
    try:
        conn.putrequest("POST", "/path", skip_accept_encoding=True)
        for field in fields:
            conn.putheader(*field)
        conn.endheaders()
    except Exception as exc:
        return type(exc), str(exc)
    return sent


def test_heads_of_requests_are_written_as_http_client_writes_them() -> None:
    """Thousands of heads with usual and odd fields, of every type: the same bytes, or the same error."""
    dice = random.Random(SEED)
    names: list[Any] = [
        "Accept",
        "X-Request-ID",
        "a b",
        "",
        "é",
        "X:",
        "X\n",
        b"Bytes",
        "User-Agent",
        "!#$%&'*+.^_`|~",
        7,
    ]
    values: list[Any] = [
        "x",
        "",
        " x ",
        "a\r\nB: c",
        "a\r\n b",
        "\t",
        "é",
        "剑",
        b"bytes",
        5,
        True,
        SKIP_HEADER,
        "\x7f",
        "~",
    ]
    failed = 0
    for _ in range(LINES):
        fields = [
            (
                dice.choice(names[:2] if dice.random() < 0.9 else names),
                *dice.choices(values, k=dice.choice([1, 1, 1, 1, 2])),
            )
            for _ in range(dice.choice([1, 2]))
        ]
        usual = written_by(HTTPConnection, fields)
        assert written_by(connections._Watched, fields) == usual, fields
        failed += isinstance(usual, tuple)
    assert LINES / 5 < failed < LINES * 4 / 5


def test_an_instrumentation_that_adds_fields_is_asked(sandbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody has put in the place of http.client's functions sees each field of a request, and can add one.

    That goes for a connection, too, that has carried a request before.
    """
    seen: list[Any] = []
    adapter.install()
    Exchanged(lambda: requests.post(sandbox.url, json={}, timeout=GIVE_UP_S))()
    original = http.client.HTTPConnection.putheader
    monkeypatch.setattr(
        http.client.HTTPConnection,
        "putheader",
        lambda conn, *field: seen.append(field[0]) or original(conn, *field),
    )
    for ask in (requests.get, requests.post):
        exchange = Exchanged(lambda ask=ask: ask(sandbox.url, headers={"X-Mine": "1"}, timeout=GIVE_UP_S))()
        assert exchange.status is not None
    assert seen.count("X-Mine") == 2


@pytest.mark.parametrize(
    "proxies", [{}, None, {"http": "http://proxy.example:3128"}], ids=["none", "null", "proxy"]
)
@pytest.mark.parametrize(
    "url",
    ["http://h.example", "http://h.example//a//b?c=d#e", "https://u:p@h.example:8/a b", "HTTP://H/%zz?é"],
)
def test_a_target_is_what_requests_makes_of_its_url(url: str, proxies: Any) -> None:
    """The target that is remembered for a URL is the one that the adapter of `requests` names, with a proxy too."""
    request = requests.Request("GET", url).prepare()
    shared: Any = adapter._shared_adapter()
    expected = HTTPAdapter().request_url(request, proxies)
    assert [shared.request_url(request, proxies) for _ in range(2)] == [expected, expected]


def test_many_targets_are_not_kept() -> None:
    """A client that asks for ever new URLs does not fill the memory."""
    shared: Any = adapter._shared_adapter()
    for number in range(3 * adapter._TARGETS):
        shared.request_url(requests.Request("GET", f"http://h.example/{number}").prepare(), {})
    assert len(shared.poolmanager.targets) <= adapter._TARGETS


def test_idle_connections_are_kept_as_in_a_lifo_queue() -> None:
    """The last one comes first, none is an Empty and one too many is a Full."""
    dice = random.Random(SEED)
    idle, usual = connections._Idle(5), queue.LifoQueue[int](5)

    def outcome(kept: Any, number: int) -> Any:
        try:
            return kept.put(number, block=False) if number else kept.get(block=False)
        except (queue.Empty, queue.Full) as exc:
            return type(exc)

    for number in dice.choices(range(10), weights=[8, *[1] * 9], k=STEPS):
        assert outcome(idle, number) == outcome(usual, number)
        assert idle.qsize() == usual.qsize()


class Fields(CaseInsensitiveDict[str]):
    """Fields that somebody has made something else of."""


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        (CaseInsensitiveDict({"B": "1", "a": "2"}), {}, {"B": "1", "a": "2"}),
        (Fields({"B": "1"}), {}, Fields({"B": "1"})),
        (CaseInsensitiveDict({"B": "1"}), {"_proxy_headers": {"b": "2"}}, CaseInsensitiveDict({"B": "1"})),
        (None, {}, None),
    ],
    ids=["fields of requests", "of a subclass", "through a proxy", "none"],
)
def test_fields_become_a_dict_where_nothing_depends_on_their_class(
    monkeypatch: pytest.MonkeyPatch, fields: Any, options: dict[str, Any], expected: Any
) -> None:
    """urllib3 gets a dict with the same fields in the same order, unless a class or a proxy makes more of them."""
    monkeypatch.setattr(HTTPConnectionPool, "urlopen", lambda pool, *args, **options: options["headers"])
    pool = connections.POOL_CLASSES["http"]("host.example", **options)
    given: Any = pool.urlopen("GET", "/", headers=fields)
    assert (type(given), given) == (type(expected), expected)
    assert list(given or ()) == list(expected or ())


def test_no_secret_is_kept() -> None:
    """Lines that most requests have are made once; one with a key, a cookie or an id is made for each request."""
    before = heads._kept_line.cache_info().currsize
    for name in ("Authorization", "Cookie", "Proxy-Authorization", "X-Request-ID", "Content-Length"):
        assert heads.plain_line(name, "12") == f"{name}: 12".encode()
    assert heads.plain_line("User-Agent", "x" * 201) is not None
    assert heads._kept_line.cache_info().currsize == before
    agent = heads.plain_line("User-Agent", "test_no_secret_is_kept")
    assert heads.plain_line("User-Agent", "test_no_secret_is_kept") is agent
