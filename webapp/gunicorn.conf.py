"""gunicorn's settings: `gunicorn -c webapp/gunicorn.conf.py webapp.wsgi:app`, as bin/serve runs it too.

gunicorn executes this file at start and again at every SIGHUP, so each reload sees the `.env` of that moment. The
process environment wins over `.env` and is not changed here. Nothing of this project may stay imported when the file
has been executed: the master would keep the old code through every reload.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def _env_file() -> dict[str, str]:
    loaded = {*sys.modules}
    from deepseek_client.settings_file import read_env_file

    try:
        return read_env_file()
    except Exception as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    finally:  # the master forgets it: a reload has to load the code of that moment
        for name in {*sys.modules} - loaded:
            if name.partition(".")[0] == "deepseek_client":
                del sys.modules[name]


_env = {**_env_file(), **os.environ}


def _text(name: str, default: str) -> str:
    return (_env.get(name) or "").strip() or default


def _refuse(name: str, need: str) -> None:
    print(f"{name}={_env.get(name)!r}: need {need}", file=sys.stderr)
    sys.exit(2)


def _whole(name: str, default: int, high: int, low: int = 1) -> int:
    text = _text(name, str(default))
    if not (re.fullmatch("[0-9]{1,9}", text) and low <= int(text) <= high):
        _refuse(name, f"a whole number from {low} to {high}")
    return int(text)


def _seconds(name: str, default: int, high: int) -> float:
    try:
        value = float(_text(name, str(default)))
    except ValueError:
        value = math.nan
    if not 0 < value <= high:
        _refuse(name, f"seconds, more than 0 and at most {high}")
    return value


host = _text("HOST", "127.0.0.1")
port = _whole("PORT", 5000, 65535)
console_port = _whole("CONSOLE_PORT", 5001, 65535, low=0)  # for bin/serve
bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
workers = _whole("WEB_CONCURRENCY", 2, 1000)
threads = _whole("WEB_THREADS", 1, 1000)
worker_class = "gthread" if threads > 1 else "sync"
_deadline_s = _seconds("LLM_DEADLINE_S", 25, 3600)
graceful_timeout = math.ceil(_deadline_s) + 5  # a call in flight at a reload may use up its deadline
_head_s, _body_s = 5, 10  # until a head, and then a body of at most 1 MiB, has come in whole
# A sync worker is silent while it reads a request and during a call: that long is not hung.
timeout = _head_s + _body_s + math.ceil(_deadline_s) + 5
preload_app = False  # with it a reload would see neither new code nor a new .env
accesslog = None
errorlog = "-"
control_socket_disable = True  # gunicorn >= 25.1 would put one for all its servers into the home directory


def on_starting(server: Any) -> None:
    """Wipes what an earlier server counted where the deployment says; not when this one takes over from it (USR2).

    Also makes workers end when they are told to from their first moment on.
    """
    _end_workers_from_their_fork_on()
    given = _text("PROMETHEUS_MULTIPROC_DIR", "")
    if given and "GUNICORN_PID" not in os.environ:
        for file in Path(given, "deepseek").glob("*.db"):
            with contextlib.suppress(OSError):
                file.unlink()


def _end_workers_from_their_fork_on() -> None:
    """Has a new process of the master end at once when it is told to; gunicorn's worker sets its own handlers later.

    The handlers of the master, with which it begins, would swallow the signal, and the master would wait for as long as
    a call may take. Nobody waits for a worker that still loads the application.
    """
    master, former = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def hold_signals() -> None:
        if os.getpid() == master:  # a worker's children are its own affair
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

    def go_on() -> None:
        if os.getpid() == master:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)

    def end_when_told() -> None:
        if os.getppid() == master:
            for number in _ENDING:
                signal.signal(number, lambda _number, _frame: os._exit(0))
            signal.pthread_sigmask(signal.SIG_SETMASK, former)

    os.register_at_fork(before=hold_signals, after_in_parent=go_on, after_in_child=end_when_told)


def _name_only_the_kind(record: Any) -> bool:
    # gunicorn repeats the line that it could not read, which may be the rest of a body.
    found = re.match("Invalid request from ip=[^ ]+ [^:]+", record.getMessage())
    if found:
        record.msg, record.args = found[0], ()
    return True


def _keeper() -> socket.socket | None:
    """The socket to what runs the worker and the queue's server of `bin/serve --tasks`; None without them."""
    number = os.environ.get("DEEPSEEK_TASKS_FD")
    return socket.socket(fileno=os.dup(int(number))) if number else None


def on_reload(server: Any) -> None:
    """Has the worker of tasks replaced, too, so that it sees the new `.env` and code."""
    if keeper := _keeper():
        with keeper, contextlib.suppress(OSError):
            keeper.sendall(b"\n")


def on_exit(server: Any) -> None:
    """Leaves after the worker of tasks, which may finish its calls, and the queue's server."""
    keeper = None if server.reexec_pid else _keeper()  # a new master (USR2) goes on with them
    if keeper is None:
        return
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C does not wait
    with keeper, contextlib.suppress(OSError):
        keeper.shutdown(socket.SHUT_WR)
        keeper.settimeout(graceful_timeout + 20)
        keeper.recv(1)


def post_fork(server: Any, worker: Any) -> None:
    """Makes the worker end when its master is gone."""
    worker.log.error_log.addFilter(_name_only_the_kind)
    if sys.platform == "linux":
        # Without it an idle sync worker holds the port for timeout / 2 after a `kill -9` of its master.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def pre_request(worker: Any, request: Any) -> None:
    """Drops the header SCRIPT_NAME, by which whoever is on this machine could move the application.

    gunicorn 21 takes it from everybody, and newer ones from loopback.
    """
    request.headers[:] = [(name, value) for name, value in request.headers if name.upper() != "SCRIPT_NAME"]


def worker_int(worker: Any) -> None:
    """Ends a worker that still loads the application at SIGINT and SIGQUIT.

    gunicorn would raise SystemExit in whatever code is running. Where that gets lost (a `__del__`, for one), the
    worker lives on, and the master waits graceful_timeout for it.
    """
    if not worker.booted:
        os._exit(0)


def post_worker_init(worker: Any) -> None:
    """Says how the worker leaves, what connections may take of it, and what it answers to no request at all."""
    from deepseek_client.flask import bound_connections, leave_with_gunicorn
    from webapp.heads import refuse_heads_in_json

    leave_with_gunicorn(worker)
    bound_connections(worker, head_s=_head_s, body_s=_body_s, probes=("/health", "/ready", "/metrics"))
    refuse_heads_in_json()
