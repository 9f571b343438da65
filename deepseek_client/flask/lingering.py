"""How a connection ends whose caller may still be sending: it is read from for a moment, and no worker waits for that.

If it were closed with something unread, the kernel would reset it, and the caller might lose the answer (RFC 9112,
section 9.6). gunicorn 27 therefore waits up to two seconds for the caller to close: a sync worker in its only thread, a
gthread worker in the thread that takes connections. A few callers that keep theirs open would stop either.
"""

from __future__ import annotations

import _socket
import contextlib
import socket
import threading
import time
from typing import Any

__all__ = ["Lingering"]

_LINGER_S = 2.0
_MOST_BYTES = 65_536
_READ_BYTES = 4096
_LOOK_EVERY_S = 0.05


class Lingering:
    """Closes connections once their callers have, in a thread of its own.

    Args:
        limit: as many wait at once; the oldest is closed when one more comes.

    Threads: any; the thread starts with the first connection that has to wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[Any, _Connection] = {}  # by socket, the oldest first; guarded by _changed
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None  # guarded by _changed

    def close(self, sock: Any) -> None:
        """Sends the end of the answer at once, and closes the connection soon; waits for nothing."""
        with self._changed:
            if sock in self._waiting:  # gthread closes twice after some errors
                return
            connection = _Connection(sock)
            if connection.is_over():
                connection.close()
                return
            self._waiting[sock] = connection
            if len(self._waiting) > self._limit:
                self._waiting.pop(next(iter(self._waiting))).close()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lingering", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                for sock, connection in list(self._waiting.items()):
                    if connection.is_over():
                        del self._waiting[sock]
                        connection.close()
            time.sleep(_LOOK_EVERY_S)


class _Connection:
    """One that has its answer, and of which only the end is awaited.

    Threads: one at a time.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._ends_at = time.monotonic() + _LINGER_S
        self._left_bytes = _MOST_BYTES
        self._is_gone = False
        try:
            sock.shutdown(socket.SHUT_WR)  # with TLS, what comes from here on is read as it is
        except OSError:
            self._is_gone = True

    def is_over(self) -> bool:
        """Whether the caller has closed, or has had its time; reads what has come, and waits for nothing."""
        if self._is_gone or time.monotonic() > self._ends_at:
            return True
        try:
            while self._left_bytes > 0:
                # Its own timeout may be any: gthread sets it once more.
                received = len(_socket.socket.recv(self._sock, _READ_BYTES, socket.MSG_DONTWAIT))
                if not received:
                    return True
                self._left_bytes -= received
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Closes the connection."""
        with contextlib.suppress(OSError):
            self._sock.close()
