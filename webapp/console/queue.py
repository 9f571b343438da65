"""The tasks of the queue, if the deployment has one."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable

from deepseek_client import Settings
from deepseek_client.tasks import Jobs, Overview, Task

__all__ = ["Queue"]


class Queue:
    """The queue that the settings name, also after they were changed.

    Args:
        settings: gives them as they are now.

    Threads: any; a look blocks for a second at most, while its server is silent.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._jobs: Jobs | None = None  # guarded by _lock
        self._url = ""  # of _jobs; guarded by _lock

    def is_configured(self) -> bool:
        """Whether CELERY_BROKER_URL is set, and the extra `tasks` is installed."""
        return bool(self._settings().celery_broker_url) and importlib.util.find_spec("redis") is not None

    def overview(self) -> Overview:
        """Returns how much waits, runs and has ended.

        Raises:
            QueueUnavailable: its server is away.
        """
        return self._opened().overview()

    def cancel(self, task_id: str) -> Task:
        """Ends a task that has not ended, and returns what it is then.

        Raises:
            LookupError: there is none.
            QueueUnavailable: its server is away.
        """
        return self._opened().cancel(task_id)

    def _opened(self) -> Jobs:
        settings = self._settings()
        with self._lock:
            if self._jobs is None or self._url != settings.celery_broker_url:
                if self._jobs is not None:
                    self._jobs.close()
                self._jobs, self._url = Jobs(settings), settings.celery_broker_url
            return self._jobs
