"""What a worker does with a task: takes it, makes the call on one event loop of the process, writes how it ended.

The call is one of AsyncDeepSeekClient like any other: deadline, retries, Retry-After, breaker and cancel are ours.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar

from .. import request_id
from ..calls.options import call_options
from ..errors import CircuitOpen, DeepSeekError, Overloaded, QueueUnavailable
from ..events import TaskFinished, emit
from ..settings import Settings
from .ledger import Begun, Ledger
from .listener import Listener

__all__ = ["Runner", "lease_s"]

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)

_AGAIN_AFTER_S = 0.3
_KEEPS_RESULT_S = 600.0
_LONGEST_PLAIN_CALL_S = 600.0  # under USE_ASYNC_DEEPSEEK=0 nothing but the client itself bounds a call
_DEFECT = {"error": "The worker could not make the call.", "code": "error"}


def lease_s(settings: Settings) -> float:
    """Seconds after which a task is taken from a worker that says nothing: it cannot be at work any more."""
    return (settings.deadline_s if settings.use_async else _LONGEST_PLAIN_CALL_S) + 10


class _Client(Protocol):
    def chat_async(self, *args: Any) -> Coroutine[Any, Any, Any]: ...
    def parse_async(self, *args: Any) -> Coroutine[Any, Any, Any]: ...
    def chat(self, *args: Any) -> Any: ...
    def parse(self, *args: Any) -> Any: ...


class _Run:
    """One run of one task; it may be cancelled before its call has begun."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancel: Callable[[], Any] | None = None  # guarded by _lock
        self.is_cancelled = False  # guarded by _lock

    def can_be_cancelled_by(self, cancel: Callable[[], Any]) -> None:
        with self._lock:
            self._cancel = cancel
            if self.is_cancelled:
                cancel()

    def ended(self, state: str) -> None:
        """The ledger says that the task has ended, and not by this run."""
        if state == "cancelled":
            with self._lock:
                self.is_cancelled = True
                if self._cancel is not None:
                    self._cancel()


class Runner:
    """Runs tasks in the threads that call it, all calls on one event loop.

    Args:
        settings: with a CELERY_BROKER_URL.
        client: makes the calls; it raises a DeepSeekError for one that failed.

    Threads: any number; `run` blocks until the task has ended. One for each process: it is not made before a fork.
    """

    def __init__(self, settings: Settings, client: _Client) -> None:
        self._settings = settings
        self._client = client
        self.ledger = Ledger(
            settings.celery_broker_url, limit=settings.task_queue_limit, ttl_s=settings.task_result_ttl_s
        )
        self._listener = Listener(settings.celery_broker_url, self._look_again)
        self._runs: dict[_Run, str] = {}  # changed in one step each
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="task-loop", daemon=True)
        self._thread.start()

    def run(self, task_id: str) -> None:
        """Makes the task's call, unless another worker does, or it has ended; writes how it ended."""
        run = _Run()
        self._listener.add(task_id, run.ended)
        self._runs[run] = task_id
        try:
            self._listener.is_heard(_AGAIN_AFTER_S)
            self._run(task_id, run)
        except QueueUnavailable as exc:
            _logger.warning("task %s is left to another run: %s", task_id, exc)
        finally:
            del self._runs[run]
            self._listener.remove(task_id, run.ended)

    def close(self) -> None:
        """Closes the connections, and ends the loop; for a runner whose tasks have ended."""
        self._listener.close()
        self.ledger.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, task_id: str, run: _Run) -> None:
        name = secrets.token_hex(8)
        begun = self._insist(
            lease_s(self._settings),
            lambda: self.ledger.start(task_id, name, lease_s(self._settings), self._listener.channel),
        )
        if not isinstance(begun, Begun):
            # Delivered twice, or cancelled while it was queued.
            _logger.info("task %s is not run: it is %s", task_id, begun)
            return
        # A context of its own: the id of the request belongs to the call, not to the thread.
        contextvars.copy_context().run(self._call_and_finish, task_id, begun, run)

    def _call_and_finish(self, task_id: str, begun: Begun, run: _Run) -> None:
        request_id.accept(begun.request_id or task_id)
        state, outcome = self._call(begun, run)
        is_ours = self._insist(
            _KEEPS_RESULT_S, lambda: self.ledger.finish(task_id, begun.fence, state, outcome)
        )
        if not is_ours:
            state = "cancelled" if run.is_cancelled else "dropped"
        _logger.info("task=%s run=%d status=%s", task_id, begun.fence, state)
        emit(TaskFinished(state))

    def _call(self, begun: Begun, run: _Run) -> tuple[str, dict[str, Any]]:
        """How the call has ended, for the ledger."""
        try:
            outcome = {"result": self._result(begun, run)}
            json.dumps(outcome)  # what cannot be kept fails here, and not each time that it would be written
            return "completed", outcome
        except DeepSeekError as exc:
            return "failed", {"error": str(exc), "code": exc.code}
        except asyncio.CancelledError:
            return "cancelled", {}
        except Exception as exc:  # the edge of a task; its text may repeat the prompt
            _logger.error("a task failed by a defect: %s", type(exc).__name__)
            return "failed", _DEFECT

    def _result(self, begun: Begun, run: _Run) -> Any:
        args = [begun.args[0], *map(_objects_of, begun.args[1:])]
        if not self._settings.use_async:  # the rollback: the client's plain method, in this thread
            return getattr(self._client, begun.method)(*args)
        call = functools.partial(getattr(self._client, f"{begun.method}_async"), *args)
        future = asyncio.run_coroutine_threadsafe(_patiently(call, self._settings.deadline_s), self._loop)
        run.can_be_cancelled_by(future.cancel)
        try:
            return future.result()
        except BaseException as exc:
            if future.cancelled():  # concurrent.futures has a class of its own for it
                raise asyncio.CancelledError from exc
            raise

    def _insist(self, for_s: float, ask: Callable[[], _T]) -> _T:
        """Asks until the server answers: an outage must not lose what was paid for."""
        pause = threading.Event()
        gives_up_at = time.monotonic() + for_s
        while True:
            try:
                return ask()
            except QueueUnavailable:
                if time.monotonic() > gives_up_at:
                    raise
                pause.wait(_AGAIN_AFTER_S)

    def _look_again(self) -> None:
        """A cancellation may have been told while nobody listened."""
        for run, task_id in list(self._runs.items()):
            try:
                run.ended(self.ledger.look(task_id).state)
            except QueueUnavailable:
                return


async def _patiently(call: Callable[[], Coroutine[Any, Any, Any]], deadline_s: float) -> Any:
    """What the call gives; one that was refused before anything was sent is made again, if its deadline lets it.

    Otherwise an open breaker would let the whole queue fail within a moment.
    """
    ends_at = time.monotonic() + deadline_s
    while True:
        left_s = max(0.0, ends_at - time.monotonic())
        with call_options(deadline_s=left_s):
            try:
                return await call()
            except (CircuitOpen, Overloaded) as exc:
                wait_s = max(exc.retry_after_s or 0.0, _AGAIN_AFTER_S)
                if wait_s >= left_s:
                    raise
        await asyncio.sleep(wait_s)


def _objects_of(value: Any) -> Any:
    """What JSON carries, as the objects with attributes that clients read."""
    if isinstance(value, list):
        return [_objects_of(each) for each in value]
    if isinstance(value, dict):
        return SimpleNamespace(**{name: _objects_of(each) for name, each in value.items()})
    return value
