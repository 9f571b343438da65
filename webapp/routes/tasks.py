"""Submit and poll: /api/llm/tasks and /api/llm/status/<task_id>.

They are there without a queue, too, and answer 503 `queue_unavailable` then.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections.abc import Iterator

from flask import Blueprint, Response, jsonify, request, url_for
from werkzeug.exceptions import Gone, NotFound

from deepseek_client import InvalidRequest
from deepseek_client.settings_file import read_env_file
from deepseek_client.tasks import ExpiredTask, Jobs, Task, UnknownTask

from ..bodies import object_from, parse_input_in, prompt_in
from ..extensions import deepseek

__all__ = ["tasks"]

tasks = Blueprint("tasks", __name__, url_prefix="/api/llm")

_POLL_AT_MOST_EVERY_S = 10
_jobs_of = functools.cache(Jobs)  # of the settings: one connection pool for a process


@tasks.post("/tasks")
def submit() -> tuple[Response, int]:
    body, limit = object_from(request), deepseek.settings.prompt_limit
    key = request.headers.get("Idempotency-Key", "").strip()
    if "Idempotency-Key" in request.headers and not key:
        raise InvalidRequest("The Idempotency-Key is blank: need 1 to 255 printable ASCII characters.")
    jobs = _jobs_of(deepseek.settings)
    with _lookup_errors():
        if "utterance" in body:
            task = jobs.submit("parse", parse_input_in(body, limit), key=key)
        else:
            task = jobs.submit("chat", (prompt_in(body, limit),), key=key)
    response = _answer(task)
    response.headers["Location"] = url_for("tasks.status", task_id=task.task_id)
    return response, 202


@tasks.get("/status/<task_id>")
def status(task_id: str) -> Response:
    wait_s = _wait_s()
    jobs = _jobs_of(deepseek.settings)
    with _lookup_errors():
        if wait_s and _waiters.take():
            try:
                return _answer(jobs.wait(task_id, wait_s))
            finally:
                _waiters.give_back()
        return _answer(jobs.look(task_id))


@tasks.delete("/tasks/<task_id>")
def cancel(task_id: str) -> Response:
    with _lookup_errors():
        return _answer(_jobs_of(deepseek.settings).cancel(task_id))


class _Waiters:
    """Requests that wait for a task, each of which holds a thread: one thread is always left for others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0  # guarded by _lock

    def take(self) -> bool:
        """Whether one more may wait; under sync workers nobody may."""
        if not request.is_multithread:
            return False
        with self._lock:
            if self._waiting >= max(1, _threads() - 1):
                return False
            self._waiting += 1
            return True

    def give_back(self) -> None:
        with self._lock:
            self._waiting -= 1


_waiters = _Waiters()


@functools.cache
def _threads() -> int:
    text = {**read_env_file(), **os.environ}.get("WEB_THREADS", "").strip()
    return int(text) if text.isdecimal() else 1


def _wait_s() -> float:
    """What ?wait= asks for, at most LLM_DEADLINE_S."""
    text = request.args.get("wait", "0")
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = math.nan
    if not 0 <= wait_s < math.inf:
        raise InvalidRequest(f"wait is {text[:20]!r}: need seconds, 0 or more.")
    return min(wait_s, deepseek.settings.deadline_s)


def _answer(task: Task) -> Response:
    response = jsonify(task.as_json())
    if not task.has_ended:
        # Polls become rarer as the task becomes older: some twenty in its life, whatever it takes.
        response.headers["Retry-After"] = str(min(_POLL_AT_MOST_EVERY_S, 1 + int(task.age_s / 4)))
    return response


@contextlib.contextmanager
def _lookup_errors() -> Iterator[None]:
    try:
        yield
    except UnknownTask as exc:
        raise NotFound(str(exc)) from exc
    except ExpiredTask as exc:
        raise Gone(str(exc)) from exc
