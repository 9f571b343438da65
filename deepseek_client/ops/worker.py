"""Runs the tasks of a queue: `deepseek-client worker`, one process on each machine that makes calls.

It needs the settings that the web has, of which CELERY_BROKER_URL names the queue's server. LLM_MAX_WORKERS tasks run
at once in its threads; a second process on the same machine is of use only when one core is full.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..settings import Settings
from ..settings_file import read_env_file
from .refusal import Refusal

if TYPE_CHECKING:
    import redis

__all__ = ["main", "missing_packages", "place_of"]

_EXTRA = ("celery", "redis")
_LEAVES_S = 5  # beyond the deadline of the last call
_ASK_AGAIN_S = 1

_logger = logging.getLogger(__name__)


def main() -> int:
    """Works until a SIGTERM or Ctrl-C, then finishes the calls that run, for LLM_DEADLINE_S + 5 seconds at most.

    Returns the exit code: 0 it was told to end, 1 it cannot work, and one line says why, 2 settings are wrong.

    Threads: the main one.
    """
    # Until Celery takes them over. What a handler raises is lost in the callback of a weak reference, and an import has
    # one for each module.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: os._exit(0))
    try:
        settings = _settings()
        _wait_for_server(settings.celery_broker_url)
    except Refusal as refusal:
        print(f"worker: {refusal}", file=sys.stderr)
        return refusal.exit_code
    from celery.exceptions import SecurityWarning

    from ..tasks import app

    # It warns root of pickled messages, which our workers do not accept.
    warnings.simplefilter("ignore", SecurityWarning)
    with _bounded_leaving(settings.deadline_s + _LEAVES_S):
        return app.main(app.make_app(settings))


def missing_packages() -> str:
    """Returns what tasks need and is not installed, joined by "and"; "" if all is there."""
    return " and ".join(name for name in _EXTRA if importlib.util.find_spec(name) is None)


def place_of(server: redis.Redis) -> str:
    """Returns where a client connects to, without a password."""
    where = server.connection_pool.connection_kwargs
    return where.get("path") or f"{where.get('host')}:{where.get('port')}"


def _settings() -> Settings:
    try:
        settings = Settings.from_env({**read_env_file(), **os.environ})
    except ConfigError as error:
        raise Refusal(str(error), exit_code=2) from None
    if not settings.celery_broker_url:
        need = "need the address of the queue's server, such as redis://127.0.0.1:6379/0"
        raise Refusal(f"CELERY_BROKER_URL is not set: {need}", exit_code=2)
    if missing := missing_packages():
        raise Refusal(f"need {missing}: pip install 'deepseek-client-async[tasks]'")
    return settings


def _wait_for_server(url: str) -> None:
    """Returns when the queue's server answers; says once that it does not."""
    from redis.exceptions import AuthenticationError, RedisError

    from ..tasks.ledger import connect

    server = connect(url)
    place, said = place_of(server), False
    while True:
        try:
            server.ping()
            break
        except AuthenticationError:
            raise Refusal(
                f"the queue's server at {place} refuses the password of CELERY_BROKER_URL"
            ) from None
        except (RedisError, OSError) as error:
            if not said:
                _say(f"waiting for the queue's server at {place}: {error}")
            said = True
            time.sleep(_ASK_AGAIN_S)
    if said:
        _say(f"the queue's server at {place} answers")
    server.close()


def _say(line: str) -> None:
    print(f"worker: {line}", file=sys.stderr, flush=True)


@contextmanager
def _bounded_leaving(limit_s: float) -> Iterator[None]:
    """Ends this process that long after the first SIGTERM or SIGINT, whatever still runs.

    Celery puts its own handlers in place of others. What the interpreter writes for each signal it leaves alone.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    former = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    has_left = threading.Event()
    watch = threading.Thread(
        target=_leave_in_time, args=(read, limit_s, has_left), name="leaving", daemon=True
    )
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        has_left.set()
        os.close(write)
        watch.join()
        os.close(read)


def _leave_in_time(read: int, limit_s: float, has_left: threading.Event) -> None:
    while told := os.read(read, 1):
        if told[0] in (signal.SIGTERM, signal.SIGINT) and not has_left.wait(limit_s):
            _logger.error("calls still run %g s after the worker was told to end: leaving them", limit_s)
            logging.shutdown()
            os._exit(1)
