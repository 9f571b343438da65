"""gunicorn's settings: `gunicorn -c webapp/gunicorn.conf.py webapp.wsgi:app`, as bin/serve runs it too.

gunicorn executes this file at start and again at every SIGHUP, so each reload sees the `.env` of that moment. The
process environment wins over `.env` and is not changed here, but for PROMETHEUS_MULTIPROC_DIR. Nothing of this
project may be imported while the file is executed: the master would keep the old code through every reload.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import math
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_METRICS_PREFIX = "deepseek-metrics-"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_MARGIN_S = 1.5  # before the master's patience ends calls are ended: their answers take a moment
_LEAVING_S = 1.0  # what a worker whose calls were ended has for its answers

_env = {**dotenv_values(".env"), **os.environ}


def _text(name: str, default: str) -> str:
    return (_env.get(name) or "").strip() or default


def _refuse(name: str, need: str) -> None:
    print(f"{name}={_env.get(name)!r}: need {need}", file=sys.stderr)
    sys.exit(2)


def _whole(name: str, default: int, high: int) -> int:
    text = _text(name, str(default))
    if not (re.fullmatch("[0-9]{1,9}", text) and 1 <= int(text) <= high):
        _refuse(name, f"a whole number from 1 to {high}")
    return int(text)


def _seconds(name: str, default: int, high: int) -> float:
    try:
        value = float(_text(name, str(default)))
    except ValueError:
        value = math.nan
    if not 0 < value <= high:
        _refuse(name, f"seconds, more than 0 and at most {high}")
    return value


def _give_metrics_a_directory() -> None:
    # The pid is in the name: a master that another one started (USR2) must not use what that one will remove.
    ours = f"{_METRICS_PREFIX}{os.getpid()}-"
    path = _text(_METRICS, "")
    name = Path(path).name
    if not path or (name.startswith(_METRICS_PREFIX) and not name.startswith(ours)):
        path = tempfile.mkdtemp(prefix=ours)
        atexit.register(_remove, path, os.getpid())
    os.environ[_METRICS] = path


def _remove(path: str, owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # workers are forks and run it too
        shutil.rmtree(path, ignore_errors=True)


host = _text("HOST", "127.0.0.1")
port = _whole("PORT", 5000, 65535)
bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
workers = _whole("WEB_CONCURRENCY", 2, 1000)
threads = _whole("WEB_THREADS", 1, 1000)
worker_class = "gthread" if threads > 1 else "sync"
_deadline_s = _seconds("LLM_DEADLINE_S", 25, 3600)
graceful_timeout = math.ceil(_deadline_s) + 5  # a call in flight at a reload may use up its deadline
timeout = math.ceil(_deadline_s) + 10  # a sync worker is silent during a call: that long is not hung
preload_app = False  # with it a reload would see neither new code nor a new .env
# How bin/toggle-async finds this server and no other; gunicorn removes it at its end.
pidfile = f".gunicorn-{port}.pid" if os.access(".", os.W_OK) else None
accesslog = None
errorlog = "-"
control_socket_disable = True  # gunicorn >= 25.1 would put one for all its servers into the home directory
_give_metrics_a_directory()


def on_starting(server: Any) -> None:
    """Wipes what an earlier server counted; not when this one takes over from a running one (USR2)."""
    directory = Path(os.environ[_METRICS])
    directory.mkdir(parents=True, exist_ok=True)
    if "GUNICORN_PID" not in os.environ:
        for file in directory.glob("*.db"):
            # Not what is not ours.
            if re.fullmatch(r"(counter|histogram|summary|gauge_[a-z]+)_[0-9]+\.db", file.name):
                file.unlink(missing_ok=True)


def post_fork(server: Any, worker: Any) -> None:
    """Makes the worker end when it is told to from its first moment on, and when its master is gone."""
    # The handlers of the master would swallow them. Nobody waits for a worker that still loads the application.
    _handle(lambda _number, _frame: os._exit(0), signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
    if sys.platform == "linux":
        # Without it an idle sync worker holds the port for timeout / 2 after a `kill -9` of its master.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def worker_int(worker: Any) -> None:
    """Ends a worker that still loads the application at SIGINT and SIGQUIT.

    gunicorn would raise SystemExit in whatever code is running. Where that gets lost (a `__del__`, for one), the
    worker lives on, and the master waits graceful_timeout for it.
    """
    os._exit(0)


def post_worker_init(worker: Any) -> None:
    """Says how the worker leaves.

    SIGTERM (a stop or a reload): what it has accepted goes on; shortly before the master's patience ends, calls that
    still run are ended and their requests answered with 503 `closing`. SIGINT and SIGQUIT: that happens at once.
    """
    patience_s = worker.cfg.graceful_timeout
    quick = (signal.SIGINT, signal.SIGQUIT)
    grace_s: dict[int, float] = {
        signal.SIGTERM: max(patience_s - _MARGIN_S, patience_s / 2),
        **dict.fromkeys(quick, 0.0),
    }
    # A handler may run late: the main thread can enter its wait for a call just when the signal comes. The number of
    # the signal is in this pipe at once, whatever the main thread does.
    signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    threading.Thread(target=_end_calls, args=(worker, signals, grace_s), name="signals", daemon=True).start()
    # gunicorn's own for SIGQUIT takes locks that the interrupted code may hold.
    _handle(worker.handle_exit, *quick)


def _handle(handler: Callable[[int, Any], None], *signals: signal.Signals) -> None:
    for number in signals:
        signal.signal(number, handler)


def _end_calls(worker: Any, signals: int, grace_s: dict[int, float]) -> None:
    """Ends the calls of this process when their grace is over, and then the process if it does not leave by itself."""
    close_at = math.inf
    while (left_s := close_at - time.monotonic()) > 0:
        if select.select([signals], [], [], None if left_s == math.inf else left_s)[0]:
            for number in os.read(signals, 64):
                close_at = min(close_at, time.monotonic() + grace_s.get(number, math.inf))
                with contextlib.suppress(BlockingIOError):
                    os.write(worker.PIPE[1], b".")  # where gunicorn had them go, to wake its loop
    _close_pools(worker)
    time.sleep(_LEAVING_S)
    worker.log.warning("worker %s: leaves a thread behind that does not end", worker.pid)
    os._exit(0)


def _close_pools(worker: Any) -> None:
    try:
        from webapp import shutdown

        shutdown()
    except Exception:
        worker.log.exception("worker %s: the shutdown of the application failed", worker.pid)


def worker_exit(server: Any, worker: Any) -> None:
    """Ends what calls are left when serving is over, so that no thread of theirs keeps the process alive."""
    if os.getpid() == server.pid:  # the master calls it too, for a worker that it finds gone
        return
    _close_pools(worker)
    # Python waits for all threads before it ends, and one may be where no abort reaches it.
    backstop = threading.Timer(_LEAVING_S, os._exit, (0,))
    backstop.daemon = True
    backstop.start()
