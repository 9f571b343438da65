"""Clients that connect and then say nothing, or never end what they say."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator

from .answers import WRONG, outcome_of
from .calls import Call
from .load import Tally

__all__ = ["IdleClients", "half_probes"]

_SILENT = 50
_SLOW = 2  # each has a thread of the server for as long as that waits for the rest of a head
_HALF = b"POST /api/llm/chat HTTP/1.1\r\nHost:"
_HALF_PROBE, _ITS_END = b"GET /health HTTP/1.1\r\n", b"Host: x\r\nConnection: close\r\n\r\n"
_ANSWER_S = 20
_PROBE = Call("probe", "GET", "/health", b"")


class IdleClients:
    """Connections of which most ask for something after all, in the end.

    Threads: only one at a time.
    """

    def __init__(self, address: str, tally: Tally) -> None:
        self._address = address
        self._tally = tally
        self._silent: list[http.client.HTTPConnection] = []
        self._slow: list[socket.socket] = []

    def begin(self) -> None:
        """Connects."""
        host, _, port = self._address.rpartition(":")
        for _ in range(_SILENT):
            connection = http.client.HTTPConnection(self._address, timeout=_ANSWER_S)
            connection.connect()
            self._silent.append(connection)
        for _ in range(_SLOW):
            self._slow.append(socket.create_connection((host, int(port)), timeout=_ANSWER_S))
            self._slow[-1].sendall(_HALF)

    def end(self) -> None:
        """Those that were silent ask and are to be answered; all leave."""
        for connection in self._silent:
            self._tally.begin()
            self._tally.end(_ask(connection))
        for connection in (*self._silent, *self._slow):
            connection.close()
        self._silent, self._slow = [], []


@contextlib.contextmanager
def half_probes(address: str, count: int) -> Iterator[None]:
    """So many clients at once that have sent half of a probe, and send the rest after the block."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        probes = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=_ANSWER_S))
            for _ in range(count)
        ]
        for probe in probes:
            probe.sendall(_HALF_PROBE)
        yield
        for probe in probes:
            with contextlib.suppress(OSError):  # one that took too long has been given up
                probe.sendall(_ITS_END)
                while probe.recv(4096):
                    pass


def _ask(connection: http.client.HTTPConnection) -> str:
    with contextlib.closing(connection):
        try:
            connection.request(_PROBE.method, _PROBE.path)
            answer = connection.getresponse()
            return outcome_of(_PROBE, answer.status, answer.read())
        except (OSError, http.client.HTTPException) as exc:
            return f"{WRONG} {_PROBE.path} after a long silence: no answer: {exc!r}"
