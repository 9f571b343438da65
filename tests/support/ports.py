"""Ports for servers that a test starts in processes of their own."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket

# Below the ports that systems give to outgoing connections and to whoever asks for any, which other tests do all the
# time: between the choice of a port and the server's start one of them would get it. Each process of pytest-xdist has a
# part of its own. Chromium refuses 10080.
_FIRST, _PARTS, _IN_A_PART = 11_000, 10, 500


def _part() -> range:
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _FIRST + number % _PARTS * _IN_A_PART
    return range(first, first + _IN_A_PART)


_begins_at = random.randrange(_IN_A_PART)  # another run may be under way on this machine
_ports = itertools.cycle([*_part()[_begins_at:], *_part()[:_begins_at]])


def free_port() -> int:
    """A port on which nobody listens, and that nobody gets before hundreds of others were given."""
    while True:
        port = next(_ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
