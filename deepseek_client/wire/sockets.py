"""Watched sockets: whichever library opened one inside of a call, it can be ended from outside, in every phase.

Inside of an exchange a socket that connects, or shakes hands, becomes one of a watched class. It tells the exchange of
its thread what that may be blocked on. An abort shuts it down, and what then returns is the end of the call, and no end
of file. A client's pause by `time.sleep` ends likewise. Sockets of other code stay as they are.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from types import BuiltinFunctionType
from typing import Any

from urllib3.util.wait import wait_for_socket

from ..fork_safe import ForkSafeLock
from . import waiting
from .exchange import UNCAPPED, Exchange, Interrupted, current
from .watch import Watch, socket_lock, watch_of

__all__ = ["WatchedSocket", "WatchedTLSSocket", "are_watched", "install", "is_installed"]


def _watching(operate: Callable[..., Any], *, reads: bool, closes: bool = False) -> Callable[..., Any]:
    """A socket's method that its exchange knows of, and that raises the exchange's end.

    Args:
        closes: at its end the socket is closed: it is not connected yet, so nobody else will do it.
    """

    # Called for each packet of a call: all of the usual case stands in this one function.
    @functools.wraps(operate)
    def method(sock: Any, *args: Any, **kwargs: Any) -> Any:
        exchange = current()
        if exchange is None:
            return operate(sock, *args, **kwargs)
        watch = exchange.sockets.get(sock)
        if watch is None or watch.owner is not exchange or exchange.aborted is not None:
            watch = _register(exchange, sock, reads, closes)
            if watch is None:
                return operate(sock, *args, **kwargs)
        is_reply_due, watch.is_busy = reads and watch.is_busy, True
        timeout_s = UNCAPPED
        if (
            exchange.keeps_deadline
            and (sock.gettimeout() or math.inf) > exchange.own_deadline - time.monotonic()
        ):
            timeout_s = exchange.cap_timeout(sock)
        try:
            if exchange.waiter is None and not watch.yields:
                result = operate(sock, *args, **kwargs)
            else:
                result = _yielding(watch, operate, is_reply_due, sock, args, kwargs)
        except Exception:
            _raise_end(exchange, watch, sock, closes)
            raise
        finally:
            watch.is_busy = not reads
            if timeout_s is not UNCAPPED:
                with suppress(OSError):  # closed
                    sock.settimeout(timeout_s)
        if exchange.aborted is not None:
            _raise_end(exchange, watch, sock, closes)
        return result

    method.__doc__ = f"Does as the base class does, until its call is aborted.\n\n{operate.__doc__ or ''}"
    return method


class _Blocking:
    """Waits in its thread, for a socket that another call yields on."""

    def give_way(self) -> None:
        """Nobody else runs in its thread."""

    def wait_for(self, sock: socket.socket, *, writes: bool, timeout_s: float | None) -> bool:
        return wait_for_socket(sock, read=not writes, write=writes, timeout=timeout_s)


_BLOCKING = _Blocking()


def _yielding(
    watch: Watch, operate: Callable[..., Any], is_reply_due: bool, sock: Any, args: Any, kwargs: Any
) -> Any:
    """What the method gives; where it would block, others run.

    Args:
        is_reply_due: it reads, and what was done before was to write: to try at once would find nothing.
    """
    waiter = waiting.current() or _BLOCKING
    timeout_s = watch.timeout_s if watch.yields else _unblock(watch, sock)
    if timeout_s == 0.0:  # its user waits by other means
        return operate(sock, *args, **kwargs)
    if operate is _SEND_ALL:
        return _send_all(watch, sock, *args, **kwargs)
    if is_reply_due and _reads_from_below(operate, sock):
        _wait(waiter, sock, writes=False, timeout_s=timeout_s)
    else:
        waiter.give_way()
    while True:
        try:
            code = operate(sock, *args, **kwargs)
            if operate is not _CONNECT_EX or code != errno.EINPROGRESS:
                return code
            writes = True
        except (BlockingIOError, ssl.SSLWantWriteError):
            writes = operate not in _RECEIVE
        except ssl.SSLWantReadError:
            writes = False
        _wait(waiter, sock, writes=writes, timeout_s=timeout_s)
        if operate in (_CONNECT, _CONNECT_EX):
            return _connected(sock, is_code=operate is _CONNECT_EX)


def _unblock(watch: Watch, sock: Any) -> float | None:
    """Has the socket yield from now on; returns the timeout that its users go on to see."""
    watch.timeout_s = _get_timeout(sock)
    watch.yields = True
    _set_timeout(sock, 0.0)
    return watch.timeout_s


def _wait(waiter: Any, sock: Any, *, writes: bool, timeout_s: float | None) -> None:
    if not waiter.wait_for(sock, writes=writes, timeout_s=timeout_s):
        raise TimeoutError("timed out")


def _reads_from_below(operate: Callable[..., Any], sock: Any) -> bool:
    """Whether the method takes what the system has received: TLS may have some of it decrypted already."""
    return operate in _RECEIVE or (operate is _TLS_READ and not sock.pending())


def _send_all(watch: Watch, sock: Any, data: Any, flags: int = 0) -> None:
    with memoryview(data) as view, view.cast("B") as rest:
        sent = 0
        while sent < len(rest):
            sent += _yielding(watch, _SEND, False, sock, (rest[sent:], flags), {})


def _connected(sock: Any, *, is_code: bool) -> int | None:
    code: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if is_code:
        return code
    if code:
        raise OSError(code, os.strerror(code))
    return None


def _register(exchange: Exchange, sock: Any, reads: bool, closes: bool) -> Watch | None:
    try:
        return exchange.register(sock, reads=reads)
    except (OSError, Interrupted):
        if closes:
            sock.close()
        raise


def _raise_end(exchange: Exchange, watch: Watch, sock: Any, closes: bool) -> None:
    """Raises the end of an exchange that was aborted; on a connection that is shared the bytes are other calls' too."""
    exchange.end_if_late()
    if exchange.aborted is not None and watch.owner is exchange:
        if closes:
            sock.close()
        raise exchange.interruption()


class _Watched:
    """What both classes of watched sockets have; no class of sockets, or a socket could become neither of them."""

    __slots__ = ()

    # While an abort shuts a socket down it is not closed: its number might be another's before that is done.

    def _real_close(self, *args: Any) -> None:
        with socket_lock:
            super()._real_close(*args)  # type: ignore[misc]

    def detach(self) -> int:
        """Gives the descriptor away, as the base class does."""
        with socket_lock:
            return super().detach()  # type: ignore[misc, no-any-return]

    def gettimeout(self) -> float | None:
        """Returns the timeout, in seconds, also while the socket yields to an event loop."""
        timeout_s: float | None = super().gettimeout()  # type: ignore[misc]
        watch = watch_of(self) if timeout_s == 0.0 else None  # type: ignore[arg-type]
        return watch.timeout_s if watch is not None and watch.yields else timeout_s

    def settimeout(self, value: float | None) -> None:
        """Sets the timeout, in seconds, if it is another one than before."""
        # Clients set the same one several times in a call; each is a system call that gives the GIL away.
        known: float | None = super().gettimeout()  # type: ignore[misc]
        if value == known:
            return
        watch = watch_of(self) if known == 0.0 else None  # type: ignore[arg-type]
        if watch is not None and watch.yields:
            watch.timeout_s = None if value is None else float(value)
        else:
            super().settimeout(value)  # type: ignore[misc]

    def setblocking(self, flag: bool) -> None:
        """Sets no timeout, or that of 0 seconds, as the base class does."""
        self.settimeout(None if flag else 0.0)


class WatchedSocket(_Watched, socket.socket):
    """A plain socket that an exchange's abort ends.

    Threads: as any socket.
    """

    __slots__ = ()


class WatchedTLSSocket(_Watched, ssl.SSLSocket):
    """A TLS socket that an exchange's abort ends, its handshake too.

    Threads: as any socket.
    """


_get_timeout: Any = socket.socket.gettimeout
_set_timeout: Any = socket.socket.settimeout
_SEND, _SEND_ALL = socket.socket.send, socket.socket.sendall
_TLS_READ = ssl.SSLSocket.read
_CONNECT, _CONNECT_EX = socket.socket.connect, socket.socket.connect_ex

_READS = ("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into")
_WRITES = ("send", "sendall", "sendmsg")
_RECEIVE = {getattr(socket.socket, name) for name in _READS if hasattr(socket.socket, name)}
for _name in _READS + _WRITES:
    if hasattr(socket.socket, _name):
        setattr(WatchedSocket, _name, _watching(getattr(socket.socket, _name), reads=_name in _READS))
# What a TLS socket's other methods are made of.
_TLS_READS = ("read", "unwrap")
_TLS_WRITES = ("send", "write")
for _name in _TLS_READS + _TLS_WRITES:
    setattr(WatchedTLSSocket, _name, _watching(getattr(ssl.SSLSocket, _name), reads=_name in _TLS_READS))
WatchedTLSSocket.do_handshake = _watching(  # type: ignore[method-assign]
    ssl.SSLSocket.do_handshake, reads=True, closes=True
)

_WATCHED: dict[type, type] = {socket.socket: WatchedSocket, ssl.SSLSocket: WatchedTLSSocket}


def _watched_class_of(kind: type) -> type | None:
    """The class that a socket of this class becomes; None for one that a library has made for itself."""
    if kind in _WATCHED:
        return _WATCHED[kind]
    if not issubclass(kind, ssl.SSLSocket) or issubclass(kind, _Watched):
        return None
    # truststore has a class for each context, with a handshake of its own, which stays.
    twin: type | None = kind.__dict__.get("_watched_twin")
    if twin is None:
        methods = {
            name: _watching(getattr(kind, name), reads=name in _TLS_READS)
            for name in _TLS_READS + _TLS_WRITES
        }
        twin = type(f"Watched{kind.__name__}", (_Watched, kind), {"__slots__": (), **methods})
        kind._watched_twin = twin  # type: ignore[attr-defined]
    return twin


def _becoming_watched(operate: Callable[..., Any]) -> Callable[..., Any]:
    """The method by which a socket becomes watched, if an exchange runs."""
    watched_operate = _watching(operate, reads=True, closes=True)

    @functools.wraps(operate)
    def method(sock: Any, *args: Any, **kwargs: Any) -> Any:
        if current() is None:
            return operate(sock, *args, **kwargs)
        watched_class = _watched_class_of(type(sock))
        if watched_class is not None and sock.type == socket.SOCK_STREAM:
            sock.__class__ = watched_class
        if not isinstance(sock, _Watched):
            return operate(sock, *args, **kwargs)
        return watched_operate(sock, *args, **kwargs)

    method.is_watching = True  # type: ignore[attr-defined]
    return method


def _waking(sleep: Callable[[float], None]) -> Callable[[float], None]:
    """`time.sleep`, which an abort ends inside of an exchange."""

    @functools.wraps(sleep)
    def interruptible_sleep(seconds: float, /) -> None:
        exchange = current()
        if exchange is None or not isinstance(seconds, (int, float)) or not seconds > 0:
            sleep(seconds)
        else:
            exchange.sleep(seconds, sleep)

    return interruptible_sleep


_lock = ForkSafeLock()

is_installed = False
"""Whether `install` has nothing more to do."""


def install() -> None:
    """Has sockets become watched where an exchange runs; does nothing when they do already.

    What another library has put in the place of a method stays there, and is asked for again at the next call.

    Threads: any.
    """
    global is_installed
    with _lock:
        places: list[tuple[Any, str]] = [
            (socket.socket, "connect"),
            (socket.socket, "connect_ex"),
            (ssl.SSLSocket, "do_handshake"),
        ]
        if (
            socket.socket in _WATCHED and socket.socket.__module__ == "socket"
        ):  # neither gevent's nor a proxy's
            for owner, name in places:
                method = getattr(owner, name)
                if _is_the_systems(method):
                    setattr(owner, name, _becoming_watched(method))
            is_installed = all(hasattr(getattr(owner, name), "is_watching") for owner, name in places)
        if not hasattr(socket.getaddrinfo, "is_watching"):
            socket.getaddrinfo = waiting.looking_up(socket.getaddrinfo)
        if isinstance(time.sleep, BuiltinFunctionType):
            time.sleep = _waking(time.sleep)  # type: ignore[assignment]


def are_watched() -> bool:
    """Whether sockets become watched inside of an exchange: not under gevent, nor where a proxy has its own.

    Threads: any.
    """
    install()
    return is_installed


def _is_the_systems(method: Any) -> bool:
    home = (getattr(method, "__globals__", None) or {}).get("__name__")
    return home == "ssl" or getattr(getattr(method, "__objclass__", None), "__module__", "") == "_socket"
