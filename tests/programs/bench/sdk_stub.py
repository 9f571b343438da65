"""One local server for clients that nobody here wrote: it answers each with its own token, or hangs in a phase."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["PHASES", "StubServer"]

PHASES = ("connect", "tls", "headers", "drip")
"""Where a call may hang: nobody accepts, a mute TLS handshake, before the reply's head, in a body that never ends."""

_DRIP_EVERY_S = 0.02


class StubServer:
    """Speaks enough of HTTP's APIs, of Redis's and of PostgreSQL's protocol to answer `tok-<number>` by itself.

    Attributes:
        phase: one of PHASES in which it hangs, "" to answer.
        reached: set once a connection has come as far as it will (but in "connect", which nobody sees).
        requests: how many have come.
        delay_s: called for each reply; how long it takes.

    Threads: one for each connection.
    """

    def __init__(self, phase: str = "", delay_s: Callable[[], float] = lambda: 0.0) -> None:
        self.phase = phase
        self.reached = threading.Event()
        self.requests = 0
        self._delay_s = delay_s
        self._closed = threading.Event()
        self._fillers: list[socket.socket] = []
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0 if phase == "connect" else 128)
        self.port = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if phase == 'tls' else 'http'}://{self.host}"
        if phase == "connect":
            for _ in range(2):
                self._fillers.append(filler := socket.socket())
                filler.setblocking(False)
                filler.connect_ex(self._listener.getsockname())
        else:
            threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> StubServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for sock in (self._listener, *self._fillers):
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, suppress(OSError, ValueError, struct.error):
            if self.phase == "tls":
                self._fall_silent(connection)
                return
            with connection.makefile("rb") as stream:
                first = stream.peek(1)[:1]  # type: ignore[attr-defined]
                kind = {b"*": self._redis, b"\x00": self._postgres}.get(first, self._http)
                kind(connection, stream)

    def _fall_silent(self, connection: socket.socket) -> None:
        self.reached.set()
        while connection.recv(65536):  # until the client goes
            pass

    def _drip(self, connection: socket.socket, piece: bytes) -> None:
        self.reached.set()
        while not self._closed.wait(_DRIP_EVERY_S):
            connection.sendall(piece)

    def _http(self, connection: socket.socket, stream: Any) -> None:
        while (request := _http_request(stream)) is not None:
            path, data = request
            self.requests += 1
            if self.phase == "headers":
                self._fall_silent(connection)
                return
            if self.phase == "drip":
                kind = b"Content-Type: application/json\r\nX-Elastic-Product: Elasticsearch\r\n"
                connection.sendall(b"HTTP/1.1 200 OK\r\n" + kind + b"Transfer-Encoding: chunked\r\n\r\n")
                self._drip(connection, b"1\r\n \r\n")
                return
            time.sleep(self._delay_s())
            body = json.dumps(_answer(path, _token(data))).encode()
            head = (
                f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Elastic-Product: Elasticsearch\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + body)

    def _redis(self, connection: socket.socket, stream: Any) -> None:
        while line := stream.readline():
            words = []
            for _ in range(int(line[1:])):
                words.append(stream.read(int(stream.readline()[1:]) + 2)[:-2])
            if words[0].upper() != b"ECHO":
                connection.sendall(b"+OK\r\n")
                continue
            self.requests += 1
            if self.phase == "headers":
                self._fall_silent(connection)
            if self.phase == "drip":
                connection.sendall(b"$1000000\r\n")
                self._drip(connection, b" ")
            time.sleep(self._delay_s())
            connection.sendall(b"$%d\r\n%b\r\n" % (len(words[1]), words[1]))

    def _postgres(self, connection: socket.socket, stream: Any) -> None:
        stream.read(struct.unpack("!I", stream.read(4))[0] - 4)
        ready = b"Z" + struct.pack("!I", 5) + b"I"
        connection.sendall(b"R" + struct.pack("!II", 8, 0) + ready)
        while kind := stream.read(1):
            query = stream.read(struct.unpack("!I", stream.read(4))[0] - 4)
            if kind != b"Q":
                continue
            if self.phase == "headers":
                self._fall_silent(connection)
            self.requests += 1
            row = b"T" + _counted(struct.pack("!H", 1) + b"t\0" + struct.pack("!IhIhih", 0, 0, 25, -1, -1, 0))
            if self.phase == "drip":
                connection.sendall(row)
                self._drip(connection, b"N" + _counted(b"SNOTICE\0C00000\0Mx\0\0"))
            time.sleep(self._delay_s())
            token = _token(query).encode()
            data = b"D" + _counted(struct.pack("!HI", 1, len(token)) + token)
            connection.sendall(row + data + b"C" + _counted(b"SELECT 1\0") + ready)


def _counted(payload: bytes) -> bytes:
    return struct.pack("!I", len(payload) + 4) + payload


def _token(data: bytes) -> str:
    found = re.search(rb"tok-[0-9]+", data)
    return found[0].decode() if found else "none"


def _http_request(stream: Any) -> tuple[str, bytes] | None:
    """The path and all of the bytes of a request; None at the connection's end."""
    line = stream.readline()
    if not line:
        return None
    head, length, is_chunked = line, 0, False
    while (field := stream.readline()) not in (b"\r\n", b""):
        head += field
        name, _, value = field.lower().partition(b":")
        length = int(value) if name == b"content-length" else length
        is_chunked = is_chunked or (name == b"transfer-encoding" and b"chunked" in value)
    body = stream.read(length)
    while is_chunked and (size := int(stream.readline().partition(b";")[0], 16)):
        body += stream.read(size + 2)
    if is_chunked:
        stream.readline()
    return line.split()[1].decode(), head + body


def _answer(path: str, token: str) -> Any:
    """What an API says that answers the token."""
    usage = {
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "total_tokens": 2,
        "input_tokens": 1,
        "output_tokens": 1,
    }
    message = {"role": "assistant", "content": token}
    if "/chat/completions" in path:
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
    if path.endswith("/messages"):
        content = [{"type": "text", "text": token}]
        return {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": content,
                "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}  # fmt: skip
    if path.endswith("/api/chat"):
        return {"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": True}
    if path.endswith("/v2/chat"):
        content = [{"type": "text", "text": token}]
        return {"id": "1", "finish_reason": "COMPLETE", "message": {"role": "assistant", "content": content}}
    if ":generateContent" in path:
        return {
            "candidates": [{"content": {"role": "model", "parts": [{"text": token}]}, "finishReason": "STOP"}]
        }
    if "/generation" in path:
        return {"request_id": "1", "output": {"text": token, "finish_reason": "stop"}, "usage": usage}
    if path.endswith("/_search"):
        hits = {"total": {"value": 1, "relation": "eq"}, "hits": [{"_source": {"token": token}}]}
        return {"took": 1, "timed_out": False, "hits": hits}
    return {"token": token}
