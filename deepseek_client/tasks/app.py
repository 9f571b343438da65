"""The Celery application that runs tasks: `celery -A deepseek_client.tasks.app worker`.

Celery brings a task's id to a worker, and nothing else: it keeps no result, tries nothing again, and sends no events.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urlsplit

from celery import Celery, bootsteps
from celery.app.log import Logging
from celery.worker.consumer import Consumer

from ..deepseek import AsyncDeepSeekClient
from ..errors import ConfigError
from ..fork_safe import ForkSafeLock
from ..settings import Settings
from ..settings_file import read_env_file
from ..telemetry import logs, metrics
from .ledger import PREFIX, TIMEOUT_S
from .message import QUEUE, TASK_NAME
from .metrics_server import MetricsServer
from .runner import Runner, lease_s
from .sweeper import Sweeper

__all__ = ["TaskApp", "celery_app", "main", "make_app", "worker_arguments"]

_REFUSED_S = 2.0


class _WorkerLogging(Logging):  # type: ignore[misc]
    """Log lines of a worker as those of a server: each with the id of its request, none with a key or a password."""

    def setup_logging_subsystem(self, loglevel: Any = None, *_: Any, **__: Any) -> None:
        settings: Settings = self.app.settings
        logs.install()
        root = logging.getLogger()
        root.setLevel(loglevel if isinstance(loglevel, int) else logging.INFO)
        root.addHandler(logs.handler(as_json=settings.log_format == "json", secrets=_secrets_of(settings)))
        for name in (
            "celery.worker.strategy",
            "celery.app.trace",
        ):  # of each task; the runner has a line of its own
            logging.getLogger(name).setLevel(logging.WARNING)
        self.already_setup = True


class _Companions(bootsteps.StartStopStep):  # type: ignore[misc]
    """What a worker has beside the tasks: metrics, and the sweeper."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        pool = getattr(worker.pool_cls, "__module__", str(worker.pool_cls))
        if "gevent" in pool or "eventlet" in pool:
            raise ConfigError(
                "a worker of the queue runs on threads or processes: take -P gevent or eventlet away"
            )
        self._sweeper: Sweeper | None = None
        self._metrics: MetricsServer | None = None

    def start(self, worker: Any) -> None:
        app: TaskApp = worker.app
        metrics.install()
        if app.settings.worker_metrics:
            self._metrics = MetricsServer(app.settings.worker_metrics)
            self._metrics.start()
        self._sweeper = Sweeper(app.runner.ledger)
        self._sweeper.start()

    def stop(self, worker: Any) -> None:
        if self._sweeper is not None:
            self._sweeper.stop()
        if self._metrics is not None:
            self._metrics.stop()

    terminate = stop


class _Consumer(Consumer):  # type: ignore[misc]
    """What takes messages; waits before it asks a server again that refuses, as one with a full disk does."""

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        super().on_connection_error_before_connected(exc)
        if isinstance(exc, self.channel_errors):  # Celery itself waits only where nobody answers
            time.sleep(_REFUSED_S)


class TaskApp(Celery):  # type: ignore[misc]
    """A Celery application with one task, `deepseek_chat_task(id)`.

    Attributes:
        settings: read when they are first needed, as a server's are: from the environment, then from `.env`.
        runner: of this process.

    Threads: as every Celery application.
    """

    backend_cls = "disabled://"  # our record is the truth
    log_cls = _WorkerLogging

    def __init__(self, settings: Settings | None = None, client: Any = None) -> None:
        super().__init__("deepseek_client", set_as_current=False)
        if settings is not None:
            self.settings = settings
        self._wrapped = client
        self._runner: tuple[int, Runner] | None = (
            None  # guarded by _runner_lock; with the process that has it
        )
        self._runner_lock = ForkSafeLock()
        self.add_defaults(self._configuration)
        self.steps["worker"].add(_Companions)

        def deepseek_chat_task(task_id: str) -> None:
            self.runner.run(task_id)

        self.task(name=TASK_NAME, shared=False)(deepseek_chat_task)  # no other application gets it

    @cached_property
    def settings(self) -> Settings:
        """What the worker was told, or what the environment and `.env` say."""
        return Settings.from_env({**read_env_file(), **os.environ})

    @property
    def runner(self) -> Runner:
        """What runs the tasks of this process; made at its first task."""
        with self._runner_lock:
            if self._runner is None or self._runner[0] != os.getpid():
                self._runner = os.getpid(), Runner(self.settings, self._client())
            return self._runner[1]

    def _client(self) -> AsyncDeepSeekClient:
        return AsyncDeepSeekClient(client=self._wrapped, settings=self.settings, errors="raise")

    def _configuration(self) -> dict[str, Any]:
        settings = self.settings
        if not settings.celery_broker_url:
            raise ConfigError("CELERY_BROKER_URL is not set: a worker needs the server that queues tasks")
        visible_s = lease_s(settings)
        return {
            "broker_url": settings.celery_broker_url,
            "broker_transport_options": {
                "global_keyprefix": PREFIX,
                "visibility_timeout": visible_s,
                "unacked_restore_interval": 5,
                "unacked_restore_throttle": 1,
                "unacked_mutex_expire": 30,
                "priority_steps": [0],
                "socket_timeout": TIMEOUT_S,
                "socket_connect_timeout": TIMEOUT_S,
                "socket_keepalive": True,
                "health_check_interval": 10,
                "max_retries": 0,
                "interval_start": 0,
                "interval_step": 0,
                "interval_max": 0,
            },
            "result_backend_transport_options": {"visibility_timeout": visible_s},
            "visibility_timeout": visible_s,
            "broker_connection_retry_on_startup": True,
            "broker_connection_max_retries": None,
            # A server that takes no writes (its disk is full, it has become a replica) is away, too.
            "broker_channel_error_retry": True,
            "task_default_queue": QUEUE,
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            "task_ignore_result": True,
            "task_publish_retry": False,
            "task_send_sent_event": False,
            "task_serializer": "json",
            "accept_content": ["json"],
            "enable_utc": True,
            "timezone": "UTC",
            "worker_consumer": _Consumer,
            "worker_pool": "threads",
            "worker_concurrency": settings.max_workers,
            "worker_prefetch_multiplier": 1,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
            "worker_enable_remote_control": False,
            "worker_send_task_events": False,
            "worker_redirect_stdouts": False,
        }


def make_app(settings: Settings | None = None, client: Any = None) -> TaskApp:
    """A Celery application for workers, with a client of one's own.

    Args:
        settings: None reads the environment and `.env` when they are first needed.
        client: whose `chat` and `parse` the tasks call; None for the DeepSeekClient of the settings.
    """
    return TaskApp(settings, client)


celery_app = make_app()


def worker_arguments() -> list[str]:
    """What `celery worker` has to be told beside what the application says itself."""
    return [
        "--quiet",
        "worker",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        "--loglevel=INFO",
    ]


def main(app: TaskApp | None = None) -> int:
    """Runs a worker in this process until a signal stops it; returns the exit code.

    SIGTERM lets tasks that run end, which takes LLM_DEADLINE_S at most; a supervisor waits for that and 5 s more.

    Raises:
        ConfigError: a setting is wrong, or CELERY_BROKER_URL is not set.

    Threads: the main one.
    """
    app = app or celery_app
    app.finalize()
    _ = app.conf.broker_url
    try:
        app.worker_main(worker_arguments())
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


def _secrets_of(settings: Settings) -> tuple[str, ...]:
    passwords = [
        urlsplit(url).password or "" for url in (settings.celery_broker_url, settings.celery_result_backend)
    ]
    return (settings.api_key, settings.web_api_token, *passwords, *map(unquote, passwords))


if __name__ == "__main__":
    sys.exit(main())
