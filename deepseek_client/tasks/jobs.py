"""Submit, poll, wait and cancel: what a web view or a program does with tasks.

Neither Celery nor redis-py is needed to import this: without them, and without a server, every call says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import request_id
from ..deepseek import check_input
from ..errors import DeepSeekError, InvalidRequest, Overloaded, QueueUnavailable
from ..events import TaskSubmitted, emit
from ..fork_safe import ForkSafeLock
from ..settings import Settings
from .overview import Overview

if TYPE_CHECKING:
    from .ledger import Ledger, Record
    from .listener import Listener

__all__ = ["ExpiredTask", "Jobs", "KeyReused", "Task", "UnknownTask", "arguments_of"]

_LOOK_AGAIN_S = 5.0
_UNHEARD_S = 0.5
_KEY_CHARS = 255
_NAMED_TASKS = 20


class UnknownTask(LookupError):
    """No such task was ever submitted."""


class ExpiredTask(LookupError):
    """The task has ended so long ago that its result is no longer kept (TASK_RESULT_TTL_S)."""


class KeyReused(InvalidRequest):
    """The submission's key was used for another submission within a day. Nothing was submitted."""

    http_status = 409


@dataclass(frozen=True)
class Task:
    """A task as it was when somebody looked.

    Attributes:
        status: "pending", "started", "completed", "failed" or "cancelled".
        result: what the client's method gave, of a completed one.
        error, code: a sentence and the code of its class, of a failed one.
        age_s: seconds since its submission.
    """

    task_id: str
    status: str
    result: Any = None
    error: str = ""
    code: str = ""
    age_s: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status not in ("pending", "started")

    def as_json(self) -> dict[str, Any]:
        """What the HTTP API says of it."""
        told: dict[str, Any] = {"task_id": self.task_id, "status": self.status}
        if self.status == "completed":
            told["result"] = self.result
        if self.status == "failed":
            told.update(error=self.error, code=self.code)
        return told


class Jobs:
    """The queue of these settings, from the side of who has something to be done.

    Making one connects to nothing. Each method raises QueueUnavailable when no queue is configured, the extra `tasks`
    is not installed, or the server is away, silent for a second, or full; and for a while afterwards at once.

    Threads: any; each method blocks for about a second at most, `wait` for as long as it is told.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = ForkSafeLock()
        self._ledger: Ledger | None = None  # guarded by _lock
        self._listener: Listener | None = None  # guarded by _lock
        self._listener_pid = 0  # guarded by _lock

    def submit(self, method: str, args: tuple[Any, ...], *, key: str = "") -> Task:
        """Has a worker call the client's `method`; returns at once.

        Args:
            method: "chat" or "parse".
            args: of the method: what JSON can carry, or objects with attributes that it can.
            key: for 24 hours the same key and arguments are the same task, whoever submits them; "" for none.

        Raises:
            Overloaded: TASK_QUEUE_LIMIT tasks wait. Nothing was submitted.
            KeyReused, ExpiredTask: of the key's task. Nothing was submitted.
            InvalidRequest: the key cannot be used, or the arguments are none that a call may send: a worker would
                refuse them, too.
            QueueUnavailable: nothing of it is ever run.
        """
        check_input(method, args, self._settings.prompt_limit)
        plain = arguments_of(args)
        if key and not (len(key) <= _KEY_CHARS and key.isascii() and key.isprintable()):
            raise InvalidRequest(f"The key has to be 1 to {_KEY_CHARS} printable ASCII characters.")
        try:
            outcome, task_id = self._opened().submit(
                method,
                plain,
                request_id.current() or "",
                key=_hash(key) if key else "",
                body_hash=_hash(json.dumps([method, plain], sort_keys=True)) if key else "",
            )
            if outcome == "other body":
                raise KeyReused("The Idempotency-Key was used for another submission.")
            if outcome == "full":
                limit = self._settings.task_queue_limit
                raise Overloaded(f"{limit} tasks are waiting already.", retry_after_s=2)
        except DeepSeekError as exc:
            emit(TaskSubmitted(exc.code))
            raise
        emit(TaskSubmitted(outcome))
        return self.look(task_id) if outcome == "repeated" else Task(task_id, "pending")

    def look(self, task_id: str) -> Task:
        """The task as it is now.

        Raises:
            UnknownTask, ExpiredTask: there is none.
        """
        return self._checked(task_id, lambda ledger: ledger.look(task_id))

    def cancel(self, task_id: str) -> Task:
        """Ends the task if it has not ended: a queued one is never run, a running call is ended within moments.

        Raises:
            UnknownTask, ExpiredTask: there is none.
        """
        return self._checked(task_id, lambda ledger: ledger.cancel(task_id))

    def overview(self) -> Overview:
        """Returns the queue as a whole: how much waits, runs and has ended, and the first twenty tasks.

        A look costs the server the same however many tasks there are.
        """
        return self._opened().overview(_NAMED_TASKS)

    def wait(self, task_id: str, timeout_s: float) -> Task:
        """The task once it has ended, or as it is when the time is over.

        Raises:
            UnknownTask, ExpiredTask: there is none.
        """
        ends_at = time.monotonic() + timeout_s
        has_ended = threading.Event()
        listener = self._listening()

        def wake(_: str) -> None:
            has_ended.set()

        listener.add(task_id, wake)
        try:
            listener.is_heard(min(_UNHEARD_S, timeout_s))
            while True:
                task = self.watched(task_id)
                left_s = ends_at - time.monotonic()
                if task.has_ended or left_s <= 0:
                    return task
                has_ended.wait(min(left_s, _LOOK_AGAIN_S if listener.is_heard() else _UNHEARD_S))
        finally:
            listener.remove(task_id, wake)

    async def ended(self, task_id: str, watched: Callable[[str], Awaitable[Task]]) -> Task:
        """The task once it has ended, for an event loop, which is not blocked.

        Args:
            watched: the method of that name, in a thread.
        """
        loop, listener = asyncio.get_running_loop(), self._listening()
        woken = asyncio.Event()

        def wake(_: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(woken.set)

        listener.add(task_id, wake)
        try:
            while True:
                woken.clear()
                task = await watched(task_id)
                if task.has_ended:
                    return task
                timer = loop.call_later(_LOOK_AGAIN_S if listener.is_heard() else _UNHEARD_S, woken.set)
                try:
                    await woken.wait()
                finally:
                    timer.cancel()
        finally:
            listener.remove(task_id, wake)

    def close(self) -> None:
        """Closes the connections of this process; the next call opens new ones."""
        with self._lock:
            if self._ledger is not None:
                self._ledger.close()
            if self._listener is not None and self._listener_pid == os.getpid():
                self._listener.close()
            self._listener = None

    def watched(self, task_id: str) -> Task:
        """The task as it is now, as `look`; the server tells this process of its end."""
        channel = self._listening().channel
        return self._checked(task_id, lambda ledger: ledger.look(task_id, channel))

    def _checked(self, task_id: str, ask: Callable[[Ledger], Record]) -> Task:
        ledger = self._opened()
        if not ledger.is_genuine(task_id):
            raise UnknownTask("There is no such task.")
        record = ask(ledger)
        if not record.state:
            raise ExpiredTask("The task's result is no longer kept.")
        outcome = record.outcome
        return Task(
            task_id, record.state, outcome.get("result"), outcome.get("error", ""), outcome.get("code", ""),
            record.age_s,
        )  # fmt: skip

    def _opened(self) -> Ledger:
        with self._lock:
            if self._ledger is None:
                settings = self._settings
                if not settings.celery_broker_url:
                    raise QueueUnavailable("No queue is configured.")
                try:
                    from .ledger import Ledger
                except ModuleNotFoundError as exc:
                    raise QueueUnavailable(
                        "The queue's client is not installed: need the extra tasks."
                    ) from exc
                self._ledger = Ledger(
                    settings.celery_broker_url,
                    limit=settings.task_queue_limit,
                    ttl_s=settings.task_result_ttl_s,
                )
            return self._ledger

    def _listening(self) -> Listener:
        ledger = self._opened()
        with self._lock:
            if self._listener is None or self._listener_pid != os.getpid():
                from .listener import Listener

                self._listener, self._listener_pid = Listener(ledger.url), os.getpid()
            return self._listener


def arguments_of(value: Any) -> Any:
    """The arguments of a call as JSON carries them: objects as what their attributes say.

    Raises:
        InvalidRequest: one of them cannot be sent to another process.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [arguments_of(each) for each in value]
    fields = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    if fields is None or not all(isinstance(name, str) for name in fields):
        raise InvalidRequest(f"A {type(value).__name__} cannot be part of a task.")
    return {name: arguments_of(each) for name, each in fields.items()}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
