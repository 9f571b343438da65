"""How gunicorn's workers leave: what was accepted goes on at SIGTERM, and nothing outlives the master's patience."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from typing import Any

from . import leaving

__all__ = ["gunicorn_conf", "gunicorn_worker", "install", "leave_with_gunicorn"]

# Before the master's patience ends: after an answer gthread keeps its connection for two seconds.
_MARGIN_S = 3.0
_LEAVING_S = 0.5  # what a worker has for its own way out, once its calls have ended
_HANDLER_S = 1.0  # until the main thread has run the handler of a signal that came to this process
_LOOK_AGAIN_S = 0.005

_QUICK = (signal.SIGINT, signal.SIGQUIT)

_CONF = """\
# For gunicorn's configuration file. How a worker ends its calls when it is told to leave: without that line it learns
# it when it loads the application, or with preload_app when its first request comes. And what idle and slow
# connections may take of a worker: that it learns nowhere else.
def post_worker_init(worker):
    from deepseek_client.flask import bound_connections, leave_with_gunicorn
    leave_with_gunicorn(worker)
    bound_connections(worker)
"""

_watched_pid = 0
_wakeup = -1  # the descriptor that signals of this process are written to


def gunicorn_conf() -> str:
    """Lines for a deployment's gunicorn configuration: how its workers leave, and what connections may take of them."""
    return _CONF


def install() -> bool:
    """Does what `leave_with_gunicorn` does if this process is a gunicorn worker, and says whether it is. Idempotent.

    Threads: the main thread, or else it does nothing.
    """
    worker = gunicorn_worker()
    if worker is None:
        return False
    leave_with_gunicorn(worker)
    return True


def gunicorn_worker() -> Any:
    """The gunicorn worker that this process is, None if it is none, or not yet.

    Threads: any.
    """
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    base = sys.modules.get("gunicorn.workers.base")
    return worker if base is not None and isinstance(worker, base.Worker) else None


def leave_with_gunicorn(worker: Any) -> None:
    """Says how the worker leaves; gunicorn's hook `post_worker_init`. Idempotent.

    SIGTERM (a stop or a reload): what it has accepted goes on; shortly before the master's patience ends, calls that
    still run are ended and their requests answered with 503 `closing`. SIGINT and SIGQUIT: that happens at once.

    Threads: the main thread only.
    """
    global _watched_pid, _wakeup
    if _watched_pid == os.getpid() or threading.current_thread() is not threading.main_thread():
        return
    _watched_pid = os.getpid()
    leaving.install()
    # A handler may run late: the main thread can enter its wait for a call just when the signal comes. The number of
    # the signal is in this pipe at once, whatever the main thread does.
    signals, _wakeup = os.pipe()
    os.set_blocking(_wakeup, False)
    signal.set_wakeup_fd(_wakeup, warn_on_full_buffer=False)
    watcher = _Watcher(worker, signals)
    threading.Thread(target=watcher.run, name="signals", daemon=True).start()
    for number in _QUICK:
        signal.signal(number, watcher.leave_quickly)


class _Watcher:
    """Ends the calls of a worker when their grace is over, and then the worker if it does not leave by itself."""

    def __init__(self, worker: Any, signals: int) -> None:
        self._worker = worker
        self._pid = os.getpid()
        self._signals = signals
        self._have_calls_ended = False
        self._patience_s = patience_s = worker.cfg.graceful_timeout
        self._grace_s: dict[int, float] = {
            signal.SIGTERM: max(patience_s - _MARGIN_S, patience_s / 2),
            **dict.fromkeys(_QUICK, 0.0),
        }

    def leave_quickly(self, number: int, frame: Any) -> None:
        """The handler of SIGINT and SIGQUIT: gunicorn's own would end the main thread before calls are answered."""
        if os.getpid() != self._pid:  # a process that a view has forked
            self._worker.handle_quit(number, frame)
        elif self._have_calls_ended:
            if not leaving.exit_has_begun.is_set():  # or it would tear what Python does at its end
                sys.exit(0)  # as gunicorn's own do
        elif self._worker.alive:
            self._worker.handle_exit(number, frame)
            self._worker.cfg.worker_int(self._worker)

    def run(self) -> None:
        """Reads the numbers of signals until calls are to be ended, and on after that."""
        close_at, is_quick = math.inf, False
        while True:
            left_s = close_at - time.monotonic()
            if left_s <= 0:
                if self._is_leaving():
                    self._end_calls(is_quick)
                close_at, is_quick = math.inf, False
            elif select.select([self._signals], [], [], None if left_s == math.inf else left_s)[0]:
                for number in os.read(self._signals, 64):
                    is_quick = is_quick or number in _QUICK
                    if not self._have_calls_ended:
                        close_at = min(close_at, time.monotonic() + self._grace_s.get(number, math.inf))
                    with contextlib.suppress(BlockingIOError):
                        os.write(self._worker.PIPE[1], b".")  # where gunicorn had them go, to wake its loop

    def _is_leaving(self) -> bool:
        """Whether the signal was for this process: a child has the same pipe for the first moment after its fork."""
        give_up_at = time.monotonic() + _HANDLER_S
        while self._worker.alive and time.monotonic() < give_up_at:
            # Wherever the main thread waits, it then runs a handler that is late, too. Again and again: it may be about
            # to wait. gunicorn ignores this signal.
            leaving.signal_main_thread(signal.SIGWINCH)
            time.sleep(_LOOK_AGAIN_S)
        return not self._worker.alive

    def _end_calls(self, is_quick: bool) -> None:
        have_all_ended = leaving.end_calls_and_wait()
        self._have_calls_ended = True
        if leaving.exit_has_begun.wait(_LEAVING_S):
            return  # its hook waits for what is left, if anything
        if not have_all_ended:
            self._worker.log.warning("worker %s: leaves a call behind that does not end", self._worker.pid)
            os._exit(0)
        # A request of the application's own is under way: a quick stop waits for none, another one as long as the
        # master does. A worker that refuses every call must not stay.
        if is_quick or not leaving.exit_has_begun.wait(_MARGIN_S):
            leaving.signal_main_thread(signal.SIGQUIT)
            if not leaving.exit_has_begun.wait(self._patience_s):
                os._exit(0)


def _after_fork_in_child() -> None:
    # What a view forks must not tell the watcher of its parent which signals it gets.
    global _wakeup
    if _wakeup >= 0:
        former = signal.set_wakeup_fd(-1)
        if former not in (-1, _wakeup):  # the application's own
            signal.set_wakeup_fd(former)
        _wakeup = -1


os.register_at_fork(after_in_child=_after_fork_in_child)
