"""What connections may take of a gunicorn worker: one that is idle or slow holds none of it for long, and many wait.

gunicorn itself gives a worker, or a thread of it, to each connection that has not sent its request yet. It has no bound
for how long that takes, and ends a worker that runs out of file descriptors.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import resource
import socket
import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

from .arrival import socket_of
from .lingering import Lingering

__all__ = ["bound_connections", "has_body_come_too_slowly"]

# A head is one packet. If that gets lost, it is sent again after 1 s, and once more 2 s later (RFC 6298).
_HEAD_S = 5.0
# Less than any connection that is in use sends, and too much for whoever wants to hold many workers for nothing.
_SLOWEST_BYTES_PER_S = 8192
# Until a connection that has sent nothing comes to a worker all the same. So do those that find the kernel's queue full
# of their like (net.ipv4.tcp_syncookies), which cannot be told from them but may be about to send.
_IDLE_S = 60
_SILENT_S = 1.0
# Of a connection whose call runs: itself, the connection to the API, and a selector of gthread's for a moment.
_DESCRIPTORS_EACH = 3
_LINGERING = (
    128  # connections that have their answer and are still read from; a quarter of the descriptors at most
)
_DESCRIPTORS_RESERVED = 16  # files that are read, the event loop, name lookups
_DESCRIPTORS_WANTED = 65_536  # enough for gunicorn's 1,000 connections of a worker; few enough to loop over
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_AGAIN_S = 0.05
_BOUNDED_WORKERS = frozenset({"SyncWorker", "ThreadWorker"})


def bound_connections(
    worker: Any, *, head_s: float = _HEAD_S, body_s: float | None = None, probes: Sequence[str] = ()
) -> None:
    """Bounds what connections may take of a sync or gthread worker; gunicorn's hook `post_worker_init`. Idempotent.

    A connection that has sent nothing stays in the kernel (Linux, TCP), and has a second when it comes to a worker. As
    many connections are taken as there are file descriptors for; the rest waits in the kernel, too. The process may use
    as many descriptors as its hard limit says.

    Args:
        head_s: seconds from a request's first byte, or from the moment that a worker waits for that, to the end of its
            headers. A connection that takes longer is closed without an answer. TLS's handshake may take as long.
        body_s: seconds for which its body may keep the worker waiting. A body that comes slower than 8 KiB a second has
            only what the head has left of `head_s`, beyond the time that it would take at that pace. One that takes
            longer is to the application as one that the caller has cut, and `has_body_come_too_slowly` tells. None for
            no bound, as large uploads need it. A sync worker is silent for as long as both and its view's own time:
            gunicorn's `timeout` must be longer.
        probes: paths whose GET requests wait for no thread of gthread's that others keep busy; not over TLS.

    Threads: the main thread, before the worker serves.
    """
    are_kept_back = [_keeps_idle_ones_in_kernel(listener) for listener in worker.sockets]
    silent_s = _SILENT_S if all(are_kept_back) else head_s
    if _BOUNDED_WORKERS.isdisjoint(kind.__name__ for kind in type(worker).__mro__):
        return  # an idle greenlet costs nothing, and nothing is known of other workers
    _bound_reading(head_s, min(silent_s, head_s), body_s)
    _bound_handshakes(head_s)
    _linger_beside_the_worker(_leave_descriptors(worker))
    if probes and hasattr(worker, "tpool") and not isinstance(worker.tpool, _Lanes):
        worker.tpool = _Lanes(worker, probes)


def _keeps_idle_ones_in_kernel(listener: Any) -> bool:
    if sys.platform == "linux" and listener.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _IDLE_S)
            return True
    return False


def _bound_reading(head_s: float, silent_s: float, body_s: float | None) -> None:
    http = sys.modules["gunicorn.http"]
    if not issubclass(http.RequestParser, _BoundedParser):
        # Where every version of gunicorn looks it up for each new connection.
        http.RequestParser = type("RequestParser", (_BoundedParser, http.RequestParser), {})  # type: ignore[attr-defined]
    parser = http.RequestParser
    parser.head_s, parser.silent_s, parser.body_s = head_s, silent_s, body_s


class _BoundedParser:
    """Before gunicorn's parser: limits for how long each request of a connection may keep its worker waiting.

    Threads: as the connection, one at a time.
    """

    head_s: float
    silent_s: float
    body_s: float | None

    def __init__(self, cfg: Any, source: Any, *args: Any) -> None:
        self._source = _BoundedSocket(source)
        super().__init__(cfg, self._source, *args)  # type: ignore[call-arg]

    def __next__(self) -> Any:
        self._source.begin_head(self.head_s, self.silent_s)
        message = super().__next__()  # type: ignore[misc]
        self._source.begin_body(self.body_s, message)
        return message


class _BoundedSocket:
    """A connection as gunicorn's parser reads it: at the end of its time, as if the caller had sent no more.

    Time counts while the worker waits for the caller, and not while the application does something else.

    Threads: as the socket.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._left_s: float | None = (
            None  # for which the worker still waits for the next bytes; None for ever
        )
        self._most_s = 0.0  # for which it still waits, however fast they come
        self._message: Any = None  # whose body is being read; None while a head is

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def begin_head(self, head_s: float, silent_s: float) -> None:
        """A request's head comes next, whose first bytes should be there already."""
        self._most_s = head_s
        # With TLS the request comes after the handshake, which an old gunicorn makes when it reads.
        self._left_s = head_s if isinstance(self._sock, ssl.SSLSocket) else silent_s
        self._message = None

    def begin_body(self, body_s: float | None, message: Any) -> None:
        """The head of this message has come; its body has what that has left, and more with each byte."""
        if body_s is None:
            self._left_s = None
        else:
            # Not of `_left_s`: that is still `silent_s` after a head that was read together with the last request.
            self._left_s, self._most_s = min(self._most_s, body_s), body_s
        self._message = message

    def recv(self, size: int) -> bytes:
        """As the socket's, in blocking mode; b"" also when the time is over."""
        left_s, former_s = self._left_s, self._sock.gettimeout()
        if left_s is None or (former_s is not None and former_s < left_s):
            return self._sock.recv(size)  # type: ignore[no-any-return]
        if left_s <= 0:
            return self._end()
        self._sock.settimeout(left_s)
        began = time.monotonic()
        try:
            received: bytes = self._sock.recv(size)
        except TimeoutError:
            return self._end()
        finally:
            self._sock.settimeout(former_s)
        waited_s = time.monotonic() - began
        self._most_s -= waited_s
        gained_s = self._most_s if self._message is None else len(received) / _SLOWEST_BYTES_PER_S
        self._left_s = min(left_s - waited_s + gained_s, self._most_s)
        return received

    def _end(self) -> bytes:
        self._left_s = 0.0
        if self._message is None:
            _read_no_more(self._sock)
        else:
            # Where the next request would begin is unknown. It is answered, so its rest is read beside the worker.
            self._message.should_close = lambda: True  # an old gunicorn's message has no `force_close`
            _too_slow.add(self._sock)
        return b""


_too_slow: WeakSet[Any] = WeakSet()  # connections whose last body has come too slowly


def has_body_come_too_slowly(environ: Mapping[str, Any]) -> bool:
    """Whether the request's body ends before its end because `bound_connections` has given its caller up.

    Its answer should be a 408. The connection is closed after it.

    Args:
        environ: of WSGI, as in `request.environ`.

    Threads: any.
    """
    return socket_of(environ) in _too_slow


def _read_no_more(sock: Any) -> None:
    # gunicorn would read on for two seconds before it closes. Not TLS's own method, which ends encryption.
    with contextlib.suppress(OSError, TypeError):
        socket.socket.shutdown(sock, socket.SHUT_RD)


def _bound_handshakes(head_s: float) -> None:
    module = sys.modules.get("gunicorn.sock")
    if module is None or not hasattr(module, "ssl_wrap_socket"):  # an old one lets the first read do it
        return
    wrap = getattr(module.ssl_wrap_socket, "__wrapped__", module.ssl_wrap_socket)

    def wrap_bounded(sock: Any, conf: Any) -> Any:
        wrapped = wrap(sock, conf)
        if type(wrapped) is ssl.SSLSocket:
            wrapped.__class__ = _BoundedTls
            wrapped.handshake_s = head_s  # type: ignore[attr-defined]
        return wrapped

    wrap_bounded.__wrapped__ = wrap  # type: ignore[attr-defined]
    module.ssl_wrap_socket = wrap_bounded  # type: ignore[attr-defined]


class _BoundedTls(ssl.SSLSocket):
    """A TLS connection whose caller may take only so long for the handshake, which gthread waits for.

    Threads: as the socket.
    """

    handshake_s: float

    def do_handshake(self, block: bool = False) -> None:
        """As the socket's, in blocking mode; raises ConnectionResetError when the time is over."""
        former_s = self.gettimeout()
        self.settimeout(self.handshake_s)  # of the whole handshake, however many packets it takes
        try:
            super().do_handshake(block)
        except TimeoutError as exc:
            _read_no_more(self)
            raise ConnectionResetError(errno.ECONNRESET, "the TLS handshake took too long") from exc
        finally:
            self.settimeout(former_s)


def _linger_beside_the_worker(limit: int) -> None:
    module = sys.modules.get("gunicorn.util")
    if module is not None and hasattr(module, "close_graceful"):  # older ones do not linger
        module.close_graceful = Lingering(limit).close  # type: ignore[attr-defined]


def _leave_descriptors(worker: Any) -> int:
    """Returns how many connections may linger."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_WANTED)
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _next_descriptor() - _DESCRIPTORS_RESERVED
    lingering = max(1, min(_LINGERING, free // 4))
    if hasattr(worker, "max_keepalived"):
        most = (free - lingering) // _DESCRIPTORS_EACH
        worker.worker_connections = max(1, min(worker.worker_connections, most))
        # As gunicorn has it: one that is kept between two requests takes no thread's place.
        worker.max_keepalived = max(0, worker.worker_connections - worker.cfg.threads)
    if not isinstance(worker.accept, _Accept):
        worker.accept = _Accept(worker)
    return lingering


def _next_descriptor() -> int:
    """The lowest number that is free: about as many are in use."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


class _Accept:
    """A worker's `accept`, for which a lack of descriptors is no reason to end.

    Threads: the worker's main thread.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._accept: Callable[..., None] = worker.accept
        self._has_warned = False

    def __call__(self, *args: Any) -> None:
        """As gunicorn's own."""
        try:
            self._accept(*args)
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            if not self._has_warned:
                self._has_warned = True
                self._worker.log.warning("worker %s: connections wait: %s", self._worker.pid, error.strerror)
            time.sleep(_ACCEPT_AGAIN_S)  # the listener stays readable: without it the loop would spin


class _Lanes:
    """In the place of a gthread worker's pool of threads: one lane for probes, one for all else.

    Threads: the worker's main thread.
    """

    def __init__(self, worker: Any, probes: Sequence[str]) -> None:
        self._lane = worker.tpool
        self._lane_of_probes = (
            worker.get_thread_pool()
        )  # of as many threads, each of which starts when it is needed
        self._beginnings = tuple(f"GET {path}{end}".encode() for path in probes for end in " ?")
        self._peeked_bytes = max(map(len, self._beginnings))

    def submit(self, handle: Callable[..., Any], connection: Any) -> Any:
        """As the pool's: has the connection's next request handled."""
        lane = self._lane_of_probes if self._is_probe(connection.sock) else self._lane
        return lane.submit(handle, connection)

    def shutdown(self, *args: Any, **options: Any) -> None:
        """As the pool's."""
        self._lane_of_probes.shutdown(*args, **options)
        self._lane.shutdown(*args, **options)

    def _is_probe(self, sock: Any) -> bool:
        # What TCP_DEFER_ACCEPT or the poller has waited for is there. Nothing there, or half of it: any request.
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        with contextlib.suppress(OSError, TypeError):
            return _socket.socket.recv(sock, self._peeked_bytes, flags).startswith(self._beginnings)
        return False
