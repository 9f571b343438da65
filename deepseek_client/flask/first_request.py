"""What an application learns of its server with its first request: how that one handles signals.

Many servers set their handlers after they have loaded the application, and gunicorn's `preload_app` loads it in another
process. Only the main thread may look and set its own; only a signal reaches it, wherever it waits.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from flask import Flask, request_started

from . import gunicorn_leaving, leaving

__all__ = ["init_app"]

_ERRAND = signal.SIGURG  # the system ignores it by default

_seen_pid = 0


def init_app(app: Flask) -> None:
    """Looks at the handlers once more when the first request comes, in each process anew.

    Threads: the main thread, or else it does nothing.
    """
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(_ERRAND) == signal.SIG_DFL:
            signal.signal(_ERRAND, _look)
        request_started.connect(_send_on_errand, app)


def _send_on_errand(_: Flask, **__: Any) -> None:
    global _seen_pid
    if _seen_pid != os.getpid():
        _seen_pid = os.getpid()
        if signal.getsignal(_ERRAND) is _look:
            leaving.signal_main_thread(_ERRAND)


def _look(_: int, __: Any) -> None:
    if not gunicorn_leaving.install():
        leaving.join_handlers_of_server()
