"""The bounds of connections, by gunicorn's own parser; what real clients see is in e2e."""

import errno
import logging
import socket
from types import SimpleNamespace

import pytest
from gunicorn import http, sock, util
from gunicorn.config import Config

from deepseek_client.flask import bound_connections, gunicorn_bounds

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"


class SyncWorker:
    """What of gunicorn's worker the bounds use."""

    def __init__(self, accept=None, sockets=()):
        self.sockets = sockets
        self.pid = 1
        self.log = logging.getLogger("gunicorn.error")
        self.accept = accept
        self.worker_connections = 1000


@pytest.fixture(autouse=True)
def gunicorn_as_it_was(monkeypatch):
    """What the bounds replace comes back."""
    for module, name in ((http, "RequestParser"), (sock, "ssl_wrap_socket"), (util, "close_graceful")):
        if hasattr(module, name):  # not in every version
            monkeypatch.setattr(module, name, getattr(module, name))


@pytest.fixture
def clock(monkeypatch):
    """The bounds' clock, which stands still."""
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(
        gunicorn_bounds, "time", SimpleNamespace(monotonic=lambda: now.s, sleep=lambda _: None)
    )
    return now


@pytest.fixture
def parser(monkeypatch, clock):
    """gunicorn's parser of a connection with bounds, and the caller's end."""
    bound_connections(SyncWorker(), head_s=5.0, body_s=10.0)
    server, caller = socket.socketpair()
    with server, caller:
        yield http.RequestParser(Config(), server, None), caller


def test_each_request_of_a_connection_has_the_whole_time(parser, clock):
    """A kept connection may be as old as it likes: each head and each body has its own bound."""
    requests, caller = parser
    for _ in range(3):
        caller.sendall(REQUEST)
        assert next(requests).body.read() == b"ab"
        clock.s += 1000.0


class Caller:
    """A connection on which pieces come after seconds that pass on the clock of the test."""

    def __init__(self, clock, *pieces):
        self.clock, self.pieces = clock, [*pieces]
        self.timeout_s = None

    def recv(self, size):
        """The next piece, or a timeout if that comes first."""
        wait_s, piece = self.pieces[0]
        if self.timeout_s is not None and wait_s > self.timeout_s:
            self.clock.s += self.timeout_s
            raise TimeoutError
        self.clock.s += wait_s
        self.pieces.pop(0)
        return piece

    def gettimeout(self):
        """As a socket's."""
        return self.timeout_s

    def settimeout(self, timeout_s):
        """As a socket's."""
        self.timeout_s = timeout_s


@pytest.fixture
def body_of(monkeypatch, clock):
    """What comes of a body whose head took some seconds, after how long in all, and whether it was too slow."""

    def read(*pieces, length=100_000, head_s=0.0):
        bound_connections(SyncWorker(), head_s=5.0, body_s=10.0)
        head = b" / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % length
        caller = Caller(clock, (0.0, b"POST"), (head_s, head), *pieces)
        message = next(http.RequestParser(Config(), caller, None))
        began_s, read = clock.s - head_s, message.body.read()
        is_slow = gunicorn_bounds.has_body_come_too_slowly({"gunicorn.socket": caller})
        assert message.should_close() == is_slow
        return len(read), pytest.approx(clock.s - began_s, abs=0.1), is_slow

    return read


def dripping(piece, every_s):
    """The same piece again and again."""
    return [(every_s, piece)] * 1000


def test_body_that_drips(body_of):
    """A body that comes slower than 8 KiB a second has what the head has left of its 5 s, and hardly more."""
    assert body_of(*dripping(b"x", 1.0)) == (5, 5, True)
    assert body_of(*dripping(b"x", 1.0), head_s=3.0) == (2, 5, True)
    assert body_of((60.0, b"x")) == (0, 5, True)


def test_body_of_a_slow_line(body_of):
    """10 kB a second suffice for as much as comes in 10 s; a longer body is given up then, as it is too slow."""
    assert body_of(*dripping(b"x" * 1000, 0.1), length=90_000) == (90_000, 9, False)
    assert body_of(*dripping(b"x" * 1000, 0.1), length=900_000) == (
        pytest.approx(100_000, rel=0.02),
        10,
        True,
    )


def test_body_that_comes_after_a_pause(body_of):
    """A pause of seconds, in which lost packets are sent again, costs nothing that a body's own pace does not bring."""
    assert body_of((3.0, b"x" * 16384), (3.0, b"x" * 16384), length=32768) == (32768, 6, False)


def test_body_behind_a_pipelined_head(clock):
    """A head that came with the request before it leaves its body as much time as one that comes alone."""
    with socket.socket() as listener:
        bound_connections(SyncWorker(sockets=[listener]), head_s=5.0, body_s=10.0)
    for late_s, came in (1.6, b"ab"), (60.0, b""):
        caller = Caller(clock, (0.0, REQUEST + REQUEST[:-2]), (late_s, b"ab"))
        requests = http.RequestParser(Config(), caller, None)
        assert next(requests).body.read() == b"ab"
        message, began_s = next(requests), clock.s
        assert message.body.read() == came
        assert clock.s - began_s == pytest.approx(min(late_s, 5.0))


@pytest.mark.parametrize(
    ("family", "limit_s"), [(socket.AF_INET, 1), (socket.AF_UNIX, 5)], ids=["tcp", "unix"]
)
def test_connection_that_sends_nothing(clock, family, limit_s):
    """What the kernel has kept back until it has sent something has a second; a head of which a byte has come has 5."""
    with socket.socket(family) as listener:
        for pieces, total_s in (((60.0, b""),), limit_s), (((0.9, b"G"), (60.0, b"")), 5):
            bound_connections(SyncWorker(sockets=[listener]), head_s=5.0)
            began_s = clock.s
            with pytest.raises((StopIteration, http.errors.NoMoreData)):
                next(http.RequestParser(Config(), Caller(clock, *pieces), None))
            assert clock.s - began_s == pytest.approx(total_s)


def test_time_of_the_application(parser, clock):
    """Time in which the application does something else before it reads the body is not its caller's."""
    requests, caller = parser
    caller.sendall(REQUEST)
    message = next(requests)
    clock.s += 1000.0
    assert message.body.read() == b"ab"


def test_bound_of_somebody_else(parser):
    """A shorter timeout of the socket that gunicorn has set stays, and is what it was afterwards."""
    requests, caller = parser
    sock = requests.unreader.sock
    sock.begin_head(1000.0, 1000.0)
    sock.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    sock.settimeout(None)
    caller.sendall(b"a")
    assert (sock.recv(1), sock.gettimeout()) == (b"a", None)


def test_other_workers_parser_is_left_alone(monkeypatch):
    """A worker of another kind reads as before."""
    monkeypatch.setattr(http, "RequestParser", http.RequestParser)
    former = http.RequestParser
    bound_connections(SimpleNamespace(sockets=[]))
    assert http.RequestParser is former


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_accept_without_descriptors(monkeypatch, clock, caplog, number):
    """A worker that has no descriptor left for a connection lives on, and says so once."""
    monkeypatch.setattr(http, "RequestParser", http.RequestParser)

    def accept(listener):
        raise OSError(number, "no more")

    worker = SyncWorker(accept)
    bound_connections(worker)
    with caplog.at_level(logging.WARNING, "gunicorn.error"):
        worker.accept(None)
        worker.accept(None)
    assert [record.getMessage() for record in caplog.records] == ["worker 1: connections wait: no more"]


def test_accept_that_fails_otherwise(monkeypatch):
    """What else accept raises is gunicorn's own business."""
    monkeypatch.setattr(http, "RequestParser", http.RequestParser)

    def accept(listener):
        raise BlockingIOError(errno.EAGAIN, "nobody")

    worker = SyncWorker(accept)
    bound_connections(worker)
    bound_connections(worker)
    with pytest.raises(BlockingIOError):
        worker.accept(None)
