"""What the kernel knows of a connection, asked over real ones."""

import socket
import struct
import sys
import time

import pytest
from support.patience import GIVE_UP_S
from support.sockets import tcp_pair, unix_pair

from deepseek_client.wire.tcp import has_other_end_closed, seconds_since_received

ROUNDED_S = 0.02  # the kernel's clock ticks a hundred times a second at least

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")


def eventually(fact):
    """Asks until it is true."""
    deadline = time.monotonic() + GIVE_UP_S
    while not fact():
        assert time.monotonic() < deadline, "never became true"


def arrived(server):
    """Waits for what the other end has done last, and leaves the socket blocking."""
    server.settimeout(GIVE_UP_S)
    server.recv(1, socket.MSG_PEEK)
    server.settimeout(None)


@on_linux
def test_wait_of_what_nobody_has_read():
    """What lies unread makes the wait grow, and one more byte begins it anew."""
    with tcp_pair() as (server, caller):
        caller.sendall(b"a")
        arrived(server)
        eventually(lambda: seconds_since_received(server) > 5 * ROUNDED_S)
        sent_at = time.monotonic()
        caller.sendall(b"b")
        assert seconds_since_received(server) <= time.monotonic() - sent_at + ROUNDED_S


def test_wait_that_nobody_knows():
    """Over a unix socket, and of a socket that is closed, the wait is None."""
    with unix_pair() as (server, _):
        assert seconds_since_received(server) is None
    assert seconds_since_received(server) is None
    assert seconds_since_received(object()) is None


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
@pytest.mark.parametrize("timeout_s", [None, 0.0], ids=["blocking", "non_blocking"])
def test_other_end(pair, timeout_s):
    """An open end that is silent, or has sent more, has not closed; one that has closed its side has."""
    with pair() as (server, caller):
        server.settimeout(timeout_s)
        assert not has_other_end_closed(server)
        caller.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert not has_other_end_closed(server)
        arrived(server)
        server.recv(100)
        caller.shutdown(socket.SHUT_WR)
        arrived(server)
        server.settimeout(timeout_s)
        assert has_other_end_closed(server)
    assert not has_other_end_closed(server)


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_other_end_of_a_socket_with_a_timeout(pair):
    """Where only reading would tell, and could take as long as the socket's timeout, nothing is known."""
    with pair() as (server, caller):
        server.settimeout(GIVE_UP_S)
        caller.close()
        server.recv(1)
        assert has_other_end_closed(server) is (pair is tcp_pair and sys.platform == "linux")


@on_linux
def test_other_end_that_sent_more_before_it_closed():
    """Bytes that nobody has read do not hide a close."""
    with tcp_pair() as (server, caller):
        caller.sendall(b"more")
        caller.close()
        arrived(server)
        eventually(lambda: has_other_end_closed(server))  # its FIN may be under way


@on_linux
def test_half_of_a_connection_and_all_of_it():
    """Why a caller that closes its sending side counts as gone: both are one state, until bytes are sent."""
    with tcp_pair() as (half, caller), tcp_pair() as (whole, gone):
        caller.shutdown(socket.SHUT_WR)
        gone.close()
        eventually(lambda: has_other_end_closed(half) and has_other_end_closed(whole))
        assert state_of(half) == state_of(whole)
        for server in (half, whole):
            server.sendall(b"x")
        eventually(lambda: state_of(half) != state_of(whole))
        assert caller.recv(1) == b"x"


def state_of(server):
    """The kernel's state of a connection."""
    return server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)


def test_other_end_that_reset():
    """A connection that was reset has no other end."""
    with tcp_pair() as (server, caller):
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        caller.close()
        eventually(lambda: has_other_end_closed(server))
