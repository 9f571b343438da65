"""What the kernel is told about a connection, and what it knows of it."""

from __future__ import annotations

import _socket
import socket
import struct
import sys
from typing import Any

__all__ = [
    "SOCKET_OPTIONS",
    "acknowledged_bytes",
    "has_other_end_closed",
    "has_unacknowledged",
    "seconds_since_received",
]

_UNACKNOWLEDGED_MS = 5_000
_PROBE_AFTER_S = 10
_PROBE_EVERY_S = 5
_PROBES = 3


def _socket_options() -> list[tuple[int, int, int]]:
    tcp = socket.IPPROTO_TCP
    options = [
        # A NAT, a load balancer or a host that is gone takes packets without a word: bytes that nobody acknowledges
        # for this long end the connection. A server that has acknowledged them may think for as long as it likes.
        (tcp, "TCP_USER_TIMEOUT", _UNACKNOWLEDGED_MS),
        # While nothing is to be sent, probes keep a NAT's memory fresh, and find out that the other end is gone.
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (tcp, "TCP_KEEPIDLE", _PROBE_AFTER_S),
        (tcp, "TCP_KEEPALIVE", _PROBE_AFTER_S),  # what macOS calls the one above
        (tcp, "TCP_KEEPINTVL", _PROBE_EVERY_S),
        (tcp, "TCP_KEEPCNT", _PROBES),
    ]
    return [(level, getattr(socket, name), value) for level, name, value in options if hasattr(socket, name)]


SOCKET_OPTIONS = _socket_options()

# struct tcp_info of <linux/tcp.h>, which only ever grows at its end. tcpi_bytes_sent came with Linux 4.19.
_TCP_INFO_BYTES = 256
_BYTES_ACKED = struct.Struct("120xQ")
_STATE = struct.Struct("B")
_LAST_RECEIVED_MS = struct.Struct("52xI")  # tcpi_last_data_recv
_ALL_BYTES = struct.Struct("120xQ72xQQ")  # acknowledged, sent, and sent again among them

# Source: <net/tcp_states.h>. TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING: the other end has sent FIN or RST.
_CLOSED_BY_OTHER_END = frozenset({6, 7, 8, 9, 11})


def acknowledged_bytes(sock: Any) -> int | None:
    """How many bytes of all that was ever sent over the socket the other end has acknowledged.

    None where that cannot be known.
    """
    info = _info_of(sock, _BYTES_ACKED)
    return None if info is None else info[0]


def has_unacknowledged(sock: Any) -> bool:
    """Whether bytes that were sent over the socket, or still lie in it, were never acknowledged.

    They count also after the kernel has given up and dropped them. False where it cannot be known.
    """
    info = _info_of(sock, _ALL_BYTES)
    if info is None:
        return False
    acknowledged, sent, sent_again = info
    return (
        acknowledged - 1 < sent - sent_again
    )  # the opening of the connection counts as one acknowledged byte


def seconds_since_received(sock: Any) -> float | None:
    """For how long nothing has come in over the socket, read or not; None where it cannot be known."""
    info = _info_of(sock, _LAST_RECEIVED_MS)
    return None if info is None else info[0] / 1000


def has_other_end_closed(sock: Any) -> bool:
    """Whether the other end has closed its side of the connection, or reset it. False where it cannot be known.

    What it sent before that and nobody has read does not hide it from Linux, over TCP; elsewhere it does.
    """
    info = _info_of(sock, _STATE)
    if info is not None:
        return info[0] in _CLOSED_BY_OTHER_END
    try:
        if sock.gettimeout():
            return False  # the socket would wait so long for something to read
        # gevent's own sockets would wait, too; they are no _socket.socket.
        return not _socket.socket.recv(sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except ConnectionError:
        return True
    except (OSError, TypeError, AttributeError):  # nothing to read, or it is no open socket
        return False


def _info_of(sock: Any, layout: struct.Struct) -> tuple[int, ...] | None:
    if sys.platform != "linux":
        return None
    try:
        info = socket.socket.getsockopt(sock, socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return layout.unpack_from(info)
    except (OSError, TypeError, struct.error):  # closed, no TCP socket, or a kernel that does not say
        return None
    except AttributeError:  # no socket at all, under gevent's patch
        return None
