"""Calls behind submit and poll: a queue on a Redis or Valkey server, Celery workers, our own record of each task.

Importing this needs neither Celery nor redis-py; `deepseek_client.tasks.app` is what workers load.
"""

from __future__ import annotations

from .client import TaskClient, chat_async_celery
from .jobs import ExpiredTask, Jobs, KeyReused, Task, UnknownTask
from .overview import ListedTask, Overview

__all__ = [
    "ExpiredTask",
    "Jobs",
    "KeyReused",
    "ListedTask",
    "Overview",
    "Task",
    "TaskClient",
    "UnknownTask",
    "chat_async_celery",
]
