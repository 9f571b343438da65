"""Takes submissions back of which nobody knows whether the server took them: they were answered 503.

A server that stops in the microseconds between writing a task and answering has it when it goes on. A connection of its
own, open beforehand, carries the withdrawal into the stopped server's buffer, so that it is read before any worker can
react to the message.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable

import redis

from ..fork_safe import ForkSafeLock
from ..queue_connection import connect
from . import scripts

__all__ = ["Withdrawals"]

_MOST = 1000
_WAITS_FOR_ANSWER_S = 60.0
_AGAIN_AFTER_S = 0.1
_GIVES_UP_S = 600.0


class Withdrawals:
    """What this process has to take back from a server.

    Args:
        url: of the server.
        ttl_s: as of the ledger.

    Threads: any; `add` blocks for nothing. A thread lives while there is something to take back.
    """

    def __init__(self, url: str, ttl_s: int) -> None:
        self._client = connect(url, socket_timeout=_WAITS_FOR_ANSWER_S, health_check_interval=0)
        self._ttl_s = ttl_s
        self._lock = ForkSafeLock()
        self._waiting: deque[tuple[str, str, float]] = deque(maxlen=_MOST)  # guarded by _lock
        self._at_work_pid = 0  # guarded by _lock; of the process that has the thread
        self._connected_pid = 0
        self._threads: set[threading.Thread] = set()  # guarded by _lock; those that use the connection
        self._is_closed = False  # guarded by _lock

    def be_ready(self) -> None:
        """Opens the connection, once for each process; blocks for nothing."""
        if self._connected_pid != os.getpid():
            self._connected_pid = os.getpid()
            with self._lock:
                self._start_locked(self._connect)

    def add(self, task_id: str, key: str) -> None:
        """Takes a submission back as soon as the server listens."""
        with self._lock:
            self._waiting.append((task_id, key, time.monotonic() + _GIVES_UP_S))
            if self._at_work_pid != os.getpid():
                self._at_work_pid = os.getpid()
                self._start_locked(self._work)

    def close(self) -> None:
        """Closes the connection; while a thread uses it, that one does so when it has done with it."""
        with self._lock:
            self._is_closed = True
            is_in_use = any(thread.is_alive() for thread in self._threads)  # a parent's threads are not
        if not is_in_use:
            self._client.close()

    def _start_locked(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._use, args=(target,), name="task-withdrawals", daemon=True)
        thread.start()
        self._threads.add(thread)

    def _use(self, target: Callable[[], None]) -> None:
        try:
            target()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
                is_last = self._is_closed and not any(thread.is_alive() for thread in self._threads)
            if is_last:
                self._client.close()

    def _connect(self) -> None:
        with contextlib.suppress(redis.RedisError):  # the first withdrawal does it then
            self._client.ping()

    def _work(self) -> None:
        pause = threading.Event()
        while True:
            with self._lock:
                if not self._waiting:
                    self._at_work_pid = 0
                    return
                task_id, key, gives_up_at = self._waiting[0]
            try:
                # The whole script: a server that was started again knows no hash of it.
                self._client.eval(scripts.WITHDRAW, 1, f"{scripts.PREFIX}queue", task_id, key, self._ttl_s)
            except redis.RedisError:
                if time.monotonic() < gives_up_at:
                    pause.wait(_AGAIN_AFTER_S)
                    continue
            with self._lock:
                if self._waiting and self._waiting[0][0] == task_id:
                    self._waiting.popleft()
