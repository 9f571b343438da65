"""What the queue's server tells a process: that a task has ended. One connection and one thread, whoever waits."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable

import redis

from .ledger import PREFIX, connect

__all__ = ["Listener"]

_logger = logging.getLogger(__name__)

_LISTEN_S = 0.5
_SILENCES = 10  # of that length, before a ping, and before its answer is given up
_AGAIN_AFTER_S = 0.5


class Listener:
    """Calls back when a task that it was asked about ends.

    Nothing is kept for a process that does not listen at that moment. So whoever waits has to look at the task once
    after `add`, and again whenever `on_connected` is called.

    Args:
        url: of the server.
        on_connected: called in the listener's thread each time that it hears the server (again).

    Attributes:
        channel: where the server must tell this process.

    Threads: any; callbacks run in the listener's thread, and must not block or raise.
    """

    def __init__(self, url: str, on_connected: Callable[[], None] = lambda: None) -> None:
        self.channel = f"{PREFIX}process:{secrets.token_hex(8)}"
        self._url = url
        self._on_connected = on_connected
        self._callbacks: dict[str, list[Callable[[str], None]]] = {}  # guarded by _lock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None  # guarded by _lock
        self._is_heard = threading.Event()
        self._is_closed = threading.Event()

    def add(self, task_id: str, callback: Callable[[str], None]) -> None:
        """Calls back with the state in which the task has ended, from now on; starts to listen if nobody did yet."""
        with self._lock:
            self._callbacks.setdefault(task_id, []).append(callback)
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="task-listener", daemon=True)
                self._thread.start()

    def remove(self, task_id: str, callback: Callable[[str], None]) -> None:
        """Undoes an `add`."""
        with self._lock, contextlib.suppress(KeyError, ValueError):
            self._callbacks[task_id].remove(callback)
            if not self._callbacks[task_id]:
                del self._callbacks[task_id]

    def is_heard(self, timeout_s: float = 0.0) -> bool:
        """Whether the server reaches this process; waits for that at most so long."""
        return self._is_heard.wait(timeout_s)

    def close(self) -> None:
        """Listens no more; who waits has to look by himself."""
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join(2 * _LISTEN_S)

    def _listen(self) -> None:
        while not self._is_closed.is_set():
            try:
                self._hear()
            except redis.RedisError as exc:
                _logger.debug("the queue's server is not heard: %s", exc)
            except Exception:  # the edge of a thread
                _logger.exception("the listener of tasks failed")
            self._is_heard.clear()
            self._is_closed.wait(_AGAIN_AFTER_S)

    def _hear(self) -> None:
        client = connect(self._url, health_check_interval=0)
        with contextlib.closing(client), client.pubsub() as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(self.channel)
            silences = 0
            while not self._is_closed.is_set():
                message = subscription.get_message(timeout=_LISTEN_S)
                if message is None:
                    silences += 1
                    if silences == _SILENCES:
                        subscription.ping()
                    elif silences == 2 * _SILENCES:  # the connection is dead, although nobody said so
                        raise redis.ConnectionError("no answer to a ping")
                    continue
                silences = 0
                if message["type"] == "subscribe":
                    self._is_heard.set()
                    self._on_connected()
                elif message["type"] == "message":
                    task_id, _, state = message["data"].decode().partition(" ")
                    self._tell(task_id, state)

    def _tell(self, task_id: str, state: str) -> None:
        with self._lock:
            callbacks = list(self._callbacks.get(task_id, ()))
        for callback in callbacks:
            callback(state)
