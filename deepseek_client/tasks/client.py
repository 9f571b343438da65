"""The client whose calls a worker makes, with the methods of the one whose calls this process makes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from typing import Any, TypeVar

from .. import errors
from ..calls.caller import deadline_in
from ..calls.options import current_options
from ..engines.daemons import DaemonExecutor
from ..errors import DeadlineExceeded, DeepSeekError, PoolClosed, QueueUnavailable
from ..settings import Settings
from .jobs import Jobs, Task

__all__ = ["TaskClient", "chat_async_celery"]

_T = TypeVar("_T")

_KINDS = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DeepSeekError) and kind is not DeepSeekError
}
# Commands of a few hundred microseconds each; whatever waits, waits without a thread.
_THREADS = 4


class TaskClient:
    """`chat_async` and `parse_async` as tasks: a worker makes the call, wherever it runs.

    A failed call raises what it raised in the worker. The awaiting task's cancellation, and its deadline (that of
    `call_options`, or LLM_DEADLINE_S; the time in the queue counts), cancel the task.

    Args:
        settings: None for `Settings.from_env(os.environ)`.

    Threads: any thread and any event loop; none of them is blocked.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings.from_env(os.environ)
        self._jobs = Jobs(self._settings)
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        # No WorkerPool, which would count and warn as the one that makes calls.
        self._threads = DaemonExecutor(_THREADS, "task-client")

    async def chat_async(self, prompt: str) -> Any:
        """The model's answer to `prompt`, {"text": str}.

        Raises:
            DeepSeekError: of the call, or Overloaded or QueueUnavailable if it was not taken.
        """
        return await self._result("chat", (prompt,))

    async def parse_async(self, utterance: str, ctx: Any) -> Any:
        """What a player meant by `utterance` in `ctx`, {"intent": str, "slots": dict, "allowed": bool, "reason": str}.

        Raises:
            DeepSeekError: as `chat_async`; InvalidRequest also if `ctx` cannot be sent to another process.
        """
        return await self._result("parse", (utterance, ctx))

    def chat_async_celery(self, prompt: str) -> dict[str, Any]:
        """Submits, and returns {"task_id", "status": "pending"} at once; `Jobs` of the same settings finds it.

        Raises:
            Overloaded, QueueUnavailable, InvalidRequest: nothing of it is ever run.

        Threads: blocks for a second at most.
        """
        return self._jobs.submit("chat", (prompt,)).as_json()

    def close(self) -> None:
        """Closes the connections of this process; the next call opens new ones."""
        self._jobs.close()

    async def _result(self, method: str, args: tuple[Any, ...]) -> Any:
        deadline_s = current_options().deadline_s
        deadline = deadline_in(self._settings.deadline_s if deadline_s is None else deadline_s)
        task = await self._submitted(method, args, deadline)
        ending = asyncio.ensure_future(self._jobs.ended(task.task_id, self._watched))
        try:
            task = await _by(deadline, ending)
        except DeadlineExceeded:
            await self._cancel(task)
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel(task))
            raise
        finally:
            ending.cancel()
        if task.status == "completed":
            return task.result
        if task.status == "cancelled":
            raise PoolClosed("The task was cancelled.")
        raise _KINDS.get(task.code, DeepSeekError)(task.error)

    async def _submitted(self, method: str, args: tuple[Any, ...], deadline: float) -> Task:
        """The task. When nobody waits any more while it is submitted, it is cancelled once its id is known."""
        submission = asyncio.ensure_future(self._threads.run(self._jobs.submit, method, args))
        try:
            return await _by(deadline, submission)
        except (DeadlineExceeded, asyncio.CancelledError):
            await asyncio.shield(self._withdraw(submission))
            raise

    async def _withdraw(self, submission: asyncio.Future[Task]) -> None:
        with contextlib.suppress(DeepSeekError):  # it was not taken
            await self._cancel(await submission)

    async def _watched(self, task_id: str) -> Task:
        while True:
            try:
                return await self._threads.run(self._jobs.watched, task_id)
            except QueueUnavailable as exc:  # the task is safe; whoever waits has a deadline
                await asyncio.sleep(exc.retry_after_s or 1)

    async def _cancel(self, task: Task) -> None:
        with contextlib.suppress(QueueUnavailable, LookupError):
            await self._threads.run(self._jobs.cancel, task.task_id)


async def _by(deadline: float, awaited: asyncio.Future[_T]) -> _T:
    """What is awaited, which goes on when the time is over, or when the caller is cancelled.

    Until Python 3.11 `asyncio.wait_for` loses a cancellation that comes as the result does.
    """
    done, _ = await asyncio.wait([awaited], timeout=max(0.0, deadline - deadline_in(0)))
    if not done:
        raise DeadlineExceeded("The task's time is over.")
    return awaited.result()


def chat_async_celery(prompt: str) -> dict[str, Any]:
    """`TaskClient.chat_async_celery` with the settings of the environment.

    Raises:
        ConfigError: a variable of the environment is wrong.
        DeepSeekError: as the method.

    Threads: any; blocks for a second at most.
    """
    return _default_client().chat_async_celery(prompt)


def _default_client() -> TaskClient:
    global _default
    if _default is None:
        _default = TaskClient()
    return _default


_default: TaskClient | None = None  # a race costs one more client
_all: weakref.WeakSet[TaskClient] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in _all:  # the parent's threads are not here
        client._reset()


os.register_at_fork(after_in_child=_after_fork_in_child)
