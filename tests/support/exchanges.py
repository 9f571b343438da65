"""Exchanges of one function each, on threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from deepseek_client.wire.exchange import Rules

from .patience import GIVE_UP_S
from .serving import Exchanged

FINAL = Rules(may_catch_end=False)


class Running:
    """A function in an exchange, on a thread of its own."""

    def __init__(self, function: Callable[[], Any], **options: Any) -> None:
        self.interruption: BaseException | None = None
        self.inside = threading.Event()
        self._function = function
        options.setdefault("rules", FINAL)
        self.exchange = Exchanged(self._run, **options)
        self._thread = threading.Thread(target=self.exchange, daemon=True)
        self._thread.start()
        assert self.inside.wait(GIVE_UP_S)

    def _run(self) -> Any:
        self.inside.set()
        try:
            return self._function()
        except BaseException as exc:
            self.interruption = exc

    def ended(self) -> BaseException | None:
        """What its method raised; fails if it does not end."""
        self._thread.join(GIVE_UP_S)
        assert not self._thread.is_alive()
        return self.interruption

    def aborted(self) -> BaseException | None:
        self.exchange.abort("cancelled")
        return self.ended()


def in_exchange(function: Callable[[], Any], **options: Any) -> Any:
    running = Running(function, **options)
    error = running.ended()
    if error is not None:
        raise error
    return running.exchange
