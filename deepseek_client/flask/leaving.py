"""How a process leaves: calls in flight are ended, so that their requests are answered and nothing waits for them.

Where a signal has its default action, a handler ends the calls first. Where a server has a handler, it ends them beside
it. Whatever ends the interpreter passes through a hook in its exit. gunicorn's workers have more: gunicorn_leaving.
"""

from __future__ import annotations

import _thread
import atexit
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ..calls.ending import end_calls, has_calls

__all__ = ["end_calls_and_wait", "exit_has_begun", "install", "join_handlers_of_server", "signal_main_thread"]

_logger = logging.getLogger(__name__)

_PATIENCE_S = 1.0  # for calls that were ended
_ANSWER_S = 0.1  # for a request to write what its ended call raised
_LOOK_AGAIN_S = 0.005

_DEFAULTS = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
    signal.SIGHUP: signal.SIG_DFL,  # of a terminal that was closed
    signal.SIGQUIT: signal.SIG_DFL,
}

exit_has_begun = threading.Event()
"""Set once the interpreter ends: no signal must interrupt it any more."""

_RELOAD = 3  # what a process under Werkzeug's reloader ends with to be started again

_is_hooked = False
_is_told_by_signal = False


def install() -> None:
    """Makes this process leave in time. Idempotent; costs nothing when no call is in flight.

    Call it in the main thread, where it can set signal handlers; in another one the exit's hook alone is installed.
    A handler that the application or its server has set, or will set, stays.
    """
    global _is_hooked
    if not _is_hooked:
        _is_hooked = True
        # Before the interpreter waits for threads; `atexit` comes after that. Python 3.9 and newer have it.
        register: Callable[..., Any] = getattr(threading, "_register_atexit", atexit.register)
        register(_leave)
    if threading.current_thread() is threading.main_thread():
        for number, default in _DEFAULTS.items():
            if signal.getsignal(number) == default:
                signal.signal(number, _AfterCalls(default))


def join_handlers_of_server() -> None:
    """Ends the calls in flight also where a server has set its own handlers of SIGTERM and SIGINT after `install`.

    Threads: the main thread only.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        is_ours = isinstance(handler, (_AfterCalls, _BesideCalls))
        if callable(handler) and not is_ours and handler is not signal.default_int_handler:
            signal.signal(number, _BesideCalls(handler))


def end_calls_and_wait() -> bool:
    """Ends all calls of this process, and gives their requests a moment to answer.

    Returns:
        False if a call is stuck where nothing reaches it.

    Threads: any; blocks for a second at most, and not at all when no call is in flight.
    """
    is_anybody_waiting = has_calls()
    end_calls()
    if not is_anybody_waiting:
        return True
    give_up_at = time.monotonic() + _PATIENCE_S
    while has_calls():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(_LOOK_AGAIN_S)
    time.sleep(_ANSWER_S)
    return True


def signal_main_thread(number: int) -> None:
    """Sends this process a signal, which wakes the main thread wherever it waits.

    Threads: any.
    """
    # Linux gives it to the main thread first. pthread_kill needs an identity that gevent's patch takes away.
    os.kill(os.getpid(), number)


class _AfterCalls:
    """A signal's handler that ends the calls in flight, and then does what the signal did before.

    Threads: called in the main thread, anywhere between two of its instructions: it takes no lock.
    """

    def __init__(self, former: Any) -> None:
        self._former = former
        self.is_ending = False

    def __call__(self, number: int, frame: Any) -> None:
        _remember_signal()
        # Somebody at a prompt interrupts one call and goes on.
        is_at_prompt = hasattr(sys, "ps1")
        if not self.is_ending and not is_at_prompt:
            self.is_ending = True
            try:
                _thread.start_new_thread(self._end_calls, (number,))
                return
            except RuntimeError:  # the interpreter is about to end, or there are no more threads
                pass
        self.is_ending = False
        if callable(self._former):
            self._former(number, frame)
        else:
            signal.signal(number, self._former)
            signal.raise_signal(number)

    def _end_calls(self, number: int) -> None:
        if has_calls():
            end_calls_and_wait()
        signal_main_thread(number)
        if self._former is signal.SIG_DFL:
            time.sleep(_PATIENCE_S)
            # The main thread runs no Python, or it would have been dead by now; Python sets handlers only there.
            ctypes.CDLL(None).signal(number, 0)  # SIG_DFL
            os.kill(os.getpid(), number)


class _BesideCalls:
    """A server's own handler of SIGTERM or SIGINT, beside which the calls in flight are ended.

    Threads: as _AfterCalls.
    """

    def __init__(self, former: Callable[[int, Any], Any]) -> None:
        self._former = former

    def __call__(self, number: int, frame: Any) -> None:
        _remember_signal()
        try:
            _thread.start_new_thread(end_calls_and_wait, ())
        except RuntimeError:  # no more threads: the server waits for its requests, as without us
            pass
        self._former(number, frame)


def _remember_signal() -> None:
    global _is_told_by_signal
    _is_told_by_signal = True


def _leave() -> None:
    exit_has_begun.set()
    if end_calls_and_wait():
        return
    _logger.warning("a call does not end: the process leaves without waiting for it")
    atexit._run_exitfuncs()
    # Python tells nobody what it was about to end with.
    is_reload = os.environ.get("WERKZEUG_RUN_MAIN") == "true" and not _is_told_by_signal
    os._exit(_RELOAD if is_reload else 0)
