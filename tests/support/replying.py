"""A server that answers each question with bytes of a test's choice, and a source of such bytes."""

from __future__ import annotations

import gzip
import json
import random
import re
import socket
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

__all__ = ["ByteServer", "Reply", "random_reply"]

_T = TypeVar("_T")


class Reply(NamedTuple):
    """What goes over the wire for one question.

    Attributes:
        shape: what is odd about it, for whoever reads a failure.
        closes: whether the server ends the connection after it.
    """

    data: bytes
    shape: str
    closes: bool


class ByteServer:
    """Answers a question that has "第N问" in it by `reply_to(N)`.

    Threads: `reply_to` is called by one thread for each connection.
    """

    def __init__(self, reply_to: Callable[[int], Reply]) -> None:
        self._reply_to = reply_to
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no further connection; those that are open end with their clients."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as stream:
            try:
                while (number := _number_of_question(stream)) is not None:
                    reply = self._reply_to(number)
                    connection.sendall(reply.data)
                    if reply.closes:
                        return
            except OSError:  # the client has left
                pass


def _number_of_question(stream: Any) -> int | None:
    length = 0
    while (line := stream.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    if not line:
        return None
    body = json.loads(stream.read(length))
    found = re.search("第([0-9]+)问", body["messages"][-1]["content"])
    return int(found[1]) if found else None


def random_reply(dice: random.Random, number: int, *, is_parse: bool) -> Reply:
    """A reply that is odd in some of its parts: status, framing, encoding, shape; many are answers all the same."""
    text, shape = _body(dice, number, is_parse=is_parse)
    content_type, charset = _seldom(dice, ("application/json", "utf-8"), _TYPES)
    body = text.encode(charset, "replace")
    fields = [] if content_type is None else [f"Content-Type: {content_type}"]
    coding = _seldom(dice, "", ["gzip", "deflate", "identity", "x-gzip", "GZIP", "lie"])
    if coding:
        fields.append(f"Content-Encoding: {'gzip' if coding == 'lie' else coding}")
        body = gzip.compress(body) if "gzip" in coding.lower() else body
        body = zlib.compress(body) if coding == "deflate" else body
    version, status = _seldom(dice, "1.1", ["1.0"]), _seldom(dice, 200, _STATUSES)
    fields += dice.sample(_FIELDS, _seldom(dice, 0, [1, 2, 3]))
    framing, framed, closes = _seldom(dice, _stated, _FRAMINGS)(dice, body)
    fields += framing
    dice.shuffle(fields)
    if version == "1.0" or dice.random() < 0.1 or _UNREADABLE in fields:
        closes = True
        fields += dice.choice([[], ["Connection: close"]])
    head = f"HTTP/{version} {status}{_seldom(dice, ' OK', _REASONS)}"
    interim = _seldom(
        dice, b"", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: </x>\r\n\r\n"]
    )
    data = interim + "\r\n".join([head, *fields, "\r\n"]).encode("latin-1") + framed
    return Reply(data, f"{shape}, {content_type}, {charset}, {coding}, {head}, {fields}, {interim!r}", closes)


def _seldom(dice: random.Random, usual: _T, odd: Sequence[_T]) -> _T:
    return usual if dice.random() < 0.75 else dice.choice(odd)


_STATUSES = [201, 202, 206, 400, 401, 403, 404, 408, 418, 422, 425, 429, 499, 500, 503, 529]
_REASONS = ["", " ", " \xe9\x9b\xaa", " a  b"]
_TYPES = [
    ("application/json; charset=utf-8", "utf-8"),
    ("application/json; charset=gbk", "gbk"),
    ('application/json; charset="GB18030"', "gb18030"),
    ("application/json;charset=utf-16", "utf-16"),
    ("application/json; charset=iso-8859-1", "utf-8"),
    ("application/json; charset=klingon", "utf-8"),
    ("APPLICATION/JSON", "utf-8"),
    ("text/plain", "utf-8"),
    ("text/html; charset=utf-8", "utf-8"),
    (None, "utf-8"),
    (None, "utf-16"),
    (None, "utf-8-sig"),
    ("application/json", "utf-8-sig"),
    (None, "gbk"),
]
_UNREADABLE = (
    "X-\xe9: \xe9"  # Python's parser takes all that follows for no fields: the reply has no length then
)
_FIELDS = [
    "Server: any", "Set-Cookie: a=b; Path=/", "X-Folded: a\r\n  b", "X-Empty:", "x-twice: 1\r\nX-Twice: 2", _UNREADABLE,
    "Retry-After: soon", "X-Long: " + "x" * 9000, "Keep-Alive: timeout=5", "Trailer: X-After", "Date: yesterday",
]  # fmt: skip


def _stated(dice: random.Random, body: bytes) -> tuple[list[str], bytes, bool]:
    return [f"Content-Length: {len(body)}"] * dice.choice([1, 1, 1, 2]), body, False


def _in_chunks(dice: random.Random, body: bytes) -> tuple[list[str], bytes, bool]:
    sent, at = b"", 0
    while at < len(body):
        piece = body[at : at + dice.choice([1, 7, 100, 5000])]
        at += len(piece)
        sent += b"%x%b\r\n%b\r\n" % (len(piece), dice.choice([b"", b";a=b", b" "]), piece)
    end = dice.choice([b"0\r\n\r\n", b"0\r\nX-After: 1\r\n\r\n", b"000\r\n\r\n"])
    return [f"Transfer-Encoding: {dice.choice(['chunked', 'Chunked'])}"], sent + end, False


def _until_closed(dice: random.Random, body: bytes) -> tuple[list[str], bytes, bool]:
    return dice.choice([[], ["Content-Length: -1"], ["Content-Length: many"]]), body, True


def _cut(dice: random.Random, body: bytes) -> tuple[list[str], bytes, bool]:
    return [f"Content-Length: {len(body)}"], body[: dice.randrange(len(body) + 1)], True


def _too_much(dice: random.Random, body: bytes) -> tuple[list[str], bytes, bool]:
    return [f"Content-Length: {len(body)}"], body + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", False


def _both(dice: random.Random, body: bytes) -> tuple[list[str], bytes, bool]:
    fields, sent, _ = _in_chunks(dice, body)
    return [*fields, f"Content-Length: {dice.choice([len(body), 3])}"], sent, False


def _differing(dice: random.Random, body: bytes) -> tuple[list[str], bytes, bool]:
    return [f"Content-Length: {len(body)}", "Content-Length: 7"], body, False


_FRAMINGS = [*[_in_chunks] * 5, _until_closed, _cut, _too_much, _both, _differing]


def _body(dice: random.Random, number: int, *, is_parse: bool) -> tuple[str, str]:
    """The text of a reply and what is odd about it."""
    content, shape = _parse_content(dice, number) if is_parse else _chat_content(dice, number)
    message: dict[str, Any] = {"role": "assistant", "content": content}
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": _seldom(dice, "stop", ["length", None]),
    }
    reply: dict[str, Any] = {"id": "x", "object": "chat.completion", "choices": [choice]}
    odd = _seldom(dice, "", _ODDITIES)
    usage = _seldom(dice, {"prompt_tokens": 1}, [None, "many", {"prompt_tokens": -1.5}, [], ...])
    if usage is not ...:
        reply["usage"] = usage
    if odd in _WHOLE:
        return _WHOLE[odd], odd
    if odd in _CHANGES:
        _CHANGES[odd](reply, choice, message)
    text = json.dumps(reply, ensure_ascii=dice.random() < 0.5)
    if odd in _WRAPPED:
        text = _WRAPPED[odd](text)
    return text, f"{shape} {odd}"


def _chat_content(dice: random.Random, number: int) -> tuple[Any, str]:
    answer = f"第{number}答" + dice.choice(["", "\n", " 雪", "\x00", "\ud83d\ude00", '"\\', "x" * 20_000])
    odd = dice.choice(
        [answer] * 8 + [None, "", "  \n", 7, {"text": answer}, [{"type": "text", "text": answer}]]
    )
    return odd, f"content {str(odd)[:40]!r}"


def _parse_content(dice: random.Random, number: int) -> tuple[str, str]:
    fields: dict[str, Any] = {
        "intent": dice.choice(["attack", "move", "talk", "unknown"]),
        "slots": dice.choice(
            [{}, {"target": f"第{number}人"}, {"item": "```{}```"}, {"a": {"b": [1, None, "雪"]}}]
        ),
        "allowed": dice.choice([True, False, None]),
        "reason": dice.choice(["", f"第{number}因", "禁术", None]),
    }
    for name in dice.sample(list(fields), dice.choice([0, 0, 0, 1, 2])):
        del fields[name]
    if dice.random() < 0.1:
        fields[dice.choice(["intent", "slots", "allowed", "reason", "more"])] = dice.choice([1, "no", [], {}])
    text = json.dumps(fields, ensure_ascii=dice.random() < 0.5, indent=dice.choice([None, 2]))
    text = dice.choice(
        [text] * 6
        + [f" \n{text}\n", f"```json\n{text}\n```", f"好的：{text}", text[:-1], f"[{text}]", "", "null"]
    )
    return text, f"content {text[:60]!r}"


def _set(key: str, value: Any) -> Callable[[Any, Any, Any], None]:
    return lambda reply, choice, message: reply.__setitem__(key, value)


_WHOLE = {
    "nothing": "",
    "blanks": "  \n\n",
    "a list": "[]",
    "null": "null",
    "html": "<html></html>",
    "half": '{"choices": [{"mess',
}
_WRAPPED: dict[str, Callable[[str], str]] = {
    "blank lines before": lambda text: "\n\n \r\n" + text,
    "something behind": lambda text: text + "x",
    "twice": lambda text: text + text,
    "NaN": lambda text: text.replace('"index": 0', '"index": NaN'),
    "Infinity": lambda text: text.replace('"index": 0', '"logprobs": -Infinity'),
    "a key twice": lambda text: text.replace('"index": 0', '"index": 0, "index": 1'),
    "a huge number": lambda text: text.replace('"index": 0', '"index": 1e999'),
}
_CHANGES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "no choices": lambda reply, choice, message: reply.pop("choices"),
    "empty choices": _set("choices", []),
    "choices null": _set("choices", None),
    "choices an object": lambda reply, choice, message: reply.update(choices={"0": choice}),
    "two choices": lambda reply, choice, message: reply["choices"].append({"message": {"content": "second"}}),
    "no message": lambda reply, choice, message: choice.pop("message"),
    "no content": lambda reply, choice, message: message.pop("content"),
    "an error beside": _set("error", {"message": "no", "code": 429}),
    "an error null": _set("error", None),
    "deep": _set("logprobs", json.loads("[" * 90 + "]" * 90)),
    "reasoning": lambda reply, choice, message: message.update(reasoning_content="先想"),
    "tool calls": lambda reply, choice, message: message.update(tool_calls=[]),
}  # fmt: skip
_ODDITIES = [*_WHOLE, *_WRAPPED, *_CHANGES]
