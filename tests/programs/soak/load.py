"""The clients: threads that send one request after the other and note what came of each."""

from __future__ import annotations

import http.client
import itertools
import random
import socket
import struct
import threading
import time
from collections import Counter

from .answers import HUNG_UP, WRONG, is_refusal, outcome_of
from .calls import Call, HangUp, next_call
from .plan import CLIENTS, DEADLINE_S

__all__ = ["Clients", "Tally"]

_ANSWER_S = DEADLINE_S + 10
_PAUSE_S = 0.02  # at most, between two requests of a client
_PAUSE_REFUSED_S = 0.1  # a server that refuses at once must not be asked a thousand times a second
_KEPT_SHARE = 0.9  # of requests after which the connection is kept
_KEPT_S = 1.0  # gunicorn closes a connection that is idle for 2 s: a request that crosses that has no answer
_LINGER_ZERO = struct.pack("ii", 1, 0)
_WRONG_KEPT = 10


class Tally:
    """What was sent, and what came of it.

    Threads: any number may count at once; the attributes are for when none does.
    """

    def __init__(self) -> None:
        self.sent = 0  # guarded by _lock
        self.outcomes: Counter[str] = Counter()  # guarded by _lock
        self.wrong: list[str] = []  # guarded by _lock; the first of them
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A request is about to be sent."""
        with self._lock:
            self.sent += 1

    def end(self, outcome: str) -> None:
        """What came of it."""
        with self._lock:
            if outcome.startswith(WRONG):
                if len(self.wrong) < _WRONG_KEPT:
                    self.wrong.append(outcome)
                outcome = WRONG
            self.outcomes[outcome] += 1

    def snapshot(self) -> tuple[int, Counter[str]]:
        """Both, at one moment."""
        with self._lock:
            return self.sent, self.outcomes.copy()


class Clients:
    """CLIENTS threads that send while they are told to.

    Threads: one thread calls the methods; the clients' own share `tally` alone.
    """

    def __init__(self, address: str, seed: int) -> None:
        self.tally = Tally()
        self._address = address
        self._seed = seed
        self._numbers = itertools.count()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self) -> None:
        """Starts the load."""
        self._stopping.clear()
        self._threads = [
            threading.Thread(target=self._send_on, args=(place,), name=f"soak-client-{place}", daemon=True)
            for place in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Ends the load, and waits until each client has what it last asked for."""
        self.stop()
        _join(self._threads)

    def stop(self) -> None:
        """Ends the load and does not wait."""
        self._stopping.set()

    def send_together(self, calls: list[Call]) -> None:
        """Sends these at once and waits for their answers."""
        threads = [threading.Thread(target=self._send, args=(call,), daemon=True) for call in calls]
        for thread in threads:
            thread.start()
        _join(threads)

    def _send(self, call: Call) -> None:
        client = _Client(self._address)
        self._send_by(client, call)
        client.close()

    def _send_on(self, place: int) -> None:
        rng = random.Random(f"client {self._seed} {place} {next(self._numbers)}")
        client = _Client(self._address)
        while not self._stopping.is_set():
            outcome = self._send_by(client, next_call(rng, next(self._numbers)))
            if rng.random() > _KEPT_SHARE:
                client.close()
            self._stopping.wait(rng.uniform(0, _PAUSE_REFUSED_S if is_refusal(outcome) else _PAUSE_S))
        client.close()

    def _send_by(self, client: _Client, call: Call) -> str:
        self.tally.begin()
        outcome = client.send(call)
        self.tally.end(outcome)
        return outcome


def _join(threads: list[threading.Thread]) -> None:
    # Bounded by the clients' own timeouts; who is not back by then shows as a request without an outcome.
    give_up = time.monotonic() + 2 * _ANSWER_S
    for thread in threads:
        thread.join(max(0.0, give_up - time.monotonic()))


class _Client:
    """One client and its connection, which it keeps as browsers do.

    Threads: only its own.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection = http.client.HTTPConnection(address, timeout=_ANSWER_S)
        self._used_at = 0.0

    def send(self, call: Call) -> str:
        """Sends the request and returns its outcome; it never raises."""
        try:
            if call.hang_up is not None:
                self._leave(call, call.hang_up)
                return HUNG_UP
            if time.monotonic() - self._used_at > _KEPT_S:
                self.close()
            self._connection.request(call.method, call.path, call.body, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            body = answer.read()
            self._used_at = time.monotonic()
            return outcome_of(call, answer.status, body)
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            return f"{WRONG} {call.method} {call.path} ({call.kind}): no answer: {exc!r}"

    def close(self) -> None:
        """Closes the connection; the next request makes one."""
        self._connection.close()

    def _leave(self, call: Call, hang_up: HangUp) -> None:
        """Sends the request, or a part of it, on a connection of its own, and goes away."""
        host, _, port = self._address.rpartition(":")
        lines = (f"{call.method} {call.path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(call.body)}")
        with socket.create_connection((host, int(port)), timeout=_ANSWER_S) as sock:
            sock.sendall(
                "\r\n".join([*lines, "\r\n"]).encode() + call.body[: int(len(call.body) * hang_up.share)]
            )
            time.sleep(hang_up.wait_s)
            if hang_up.resets:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
