"""The account's limit as a guard: an attempt begins only while fewer than LLM_ACCOUNT_LIMIT run on all hosts."""

from __future__ import annotations

import contextvars
import functools
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .. import events
from ..errors import ConfigError, Overloaded, RateLimited
from ..events import emit
from ..settings import Settings
from ..wire import waiting
from ..wire.failures import failure_of_end
from .call import Attempt, Call
from .places import Place, Places

if TYPE_CHECKING:
    from ..account_server import Standing

__all__ = ["AccountLeases", "LeaseServer", "account_leases", "limit_named_in"]

_logger = logging.getLogger(__name__)

# Source: users' reports of the API's 429, "Your current concurrency is 40, which exceeds your concurrency limit of 39".
_NAMED_LIMIT = re.compile(r"concurrency limit\D{1,20}([1-9][0-9]{0,5})\b", re.IGNORECASE)

# The place that the running code's attempt holds, and whose it is: a call inside of that attempt uses it too.
_holding: contextvars.ContextVar[tuple[AccountLeases, Place] | None] = contextvars.ContextVar(
    "llm_account_place", default=None
)


class LeaseServer(Protocol):
    """What all processes share: an AccountServer.

    Threads: each method belongs to one thread.
    """

    def exchange(self, process: str, news: dict[str, Any]) -> Standing | None:
        """Tells what is new here; returns how things stand, None if the process must join. Raises ConnectionError."""

    def next_grant(self, process: str) -> str | None:
        """Waits a moment for the token of a waiting place that is granted meanwhile. Raises ConnectionError."""


class AccountLeases:
    """Lets an attempt run only while it holds one of the account's places.

    An attempt waits in its worker's thread, in the slot of the pool that it has anyway. So LLM_QUEUE_LIMIT and the
    pool's pace bound what waits for the account, too, and a back-off holds no place. The wait ends with the call's
    deadline, its cancellation and the pool's close. A place goes to the longest waiting attempt of any process.

    A process beats once a second, and the others take it for dead after three. While the server is away each keeps to
    a share. A call inside of another one's attempt, which waits for it, uses that one's place.

    Args:
        limit: LLM_ACCOUNT_LIMIT.
        connect: makes the server's client, once in each process; it must not block.
        clock: replaces `time.monotonic`.

    Threads: any. The first attempt of a process starts two daemon threads. After a fork the child knows of no places,
        and joins by itself.
    """

    def __init__(
        self, limit: int, connect: Callable[[], LeaseServer], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._connect = connect
        self._clock = clock
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._places = Places(self._limit, clock=self._clock)  # guarded by _changed
        self._threads: list[threading.Thread] = []  # guarded by _changed
        self._is_closed = False  # guarded by _changed

    def before_call(self) -> _Permit:
        """Lets every call begin: its attempts are what waits."""
        return _Permit(self)

    def take(self, attempt: Attempt) -> Place:
        """Waits in this thread for a place.

        Raises:
            DeadlineExceeded: there was none before the attempt's time was over. Nothing was sent.
            PoolClosed: the attempt was ended meanwhile. Nothing was sent.
            Overloaded: this process can start no thread. Nothing was sent.
        """
        exchange, began, place = attempt.exchange, self._clock(), Place()
        try:
            with self._changed:
                self._start_locked()
                self._places.ask(place)
                self._changed.notify_all()
            attempt.end_wait = place.turn.set
            if exchange.aborted is None:  # only now: a later abort() finds end_wait
                left_s = threading.TIMEOUT_MAX if exchange.deadline is None else exchange.deadline - began
                waiting.for_event(place.turn, min(max(0.0, left_s), threading.TIMEOUT_MAX))
            if not place.is_held or exchange.aborted is not None:
                raise failure_of_end(exchange)
        except BaseException:  # also what a signal's handler raises
            self.leave(place)
            raise
        finally:
            attempt.end_wait = None
            if events.listeners:
                emit(events.AccountChanged(waited_s=self._clock() - began))
        return place

    def leave(self, place: Place) -> None:
        """The place is free. Idempotent."""
        with self._changed:
            self._places.leave(place)
            self._changed.notify_all()

    def refused(self, api_message: str) -> None:
        """The API has refused an attempt by 429: the limit of all processes becomes lower for some time.

        Args:
            api_message: the API's own words, which may name its limit.
        """
        with self._changed:
            self._places.refused(limit_named_in(api_message))
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the two threads, and waits for neither; the other processes take this one for dead."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _start_locked(self) -> None:
        if self._threads:
            return
        server = self._connect()
        for target in (self._speak, self._listen):
            thread = threading.Thread(target=target, args=(server,), name="llm-account", daemon=True)
            try:
                contextvars.Context().run(thread.start)  # they belong to no call, whoever makes the first one
            except RuntimeError as exc:  # no more threads in this process, or Python is about to end
                raise Overloaded("No thread can be started for the call.") from exc
            self._threads.append(thread)

    def _speak(self, server: LeaseServer) -> None:
        """Tells the server what is new, at least once per beat; a thread's whole life."""
        while True:
            with self._changed:
                while not self._is_closed and (left_s := self._places.seconds_to_speech()) > 0:
                    self._changed.wait(left_s)
                if self._is_closed:
                    return
                process, news = self._places.speech()
            try:
                standing = server.exchange(process, news)
            except Exception as exc:  # the edge of a thread that every call waits for
                self._lost(process, exc)
                continue
            with self._changed:
                was_away = self._places.heard(process, news, standing)
                limit = self._places.limit
                self._changed.notify_all()
            if was_away:
                _logger.warning("the account's limit is shared again: %d calls in all processes", limit)
            self._report()

    def _listen(self, server: LeaseServer) -> None:
        """Hears which places were granted when other processes left theirs; a thread's whole life."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._places.process is not None)
                if self._is_closed:
                    return
                process = self._places.process or ""
            try:
                token = server.next_grant(process)
            except Exception as exc:  # the edge of a thread that calls wait for
                self._lost(process, exc)
                continue
            if token is not None:
                with self._changed:
                    self._places.granted(process, [token])

    def _lost(self, process: str, error: Exception) -> None:
        with self._changed:
            goes_away = self._places.lost(process)
            share = self._places.share
            self._changed.notify_all()
        if goes_away:
            _logger.warning(
                "the account's limit cannot be shared: this process keeps to %d calls at once (%s)",
                share,
                error,
                exc_info=None if isinstance(error, ConnectionError) else error,  # a defect
            )
            self._report()

    def _report(self) -> None:
        with self._changed:
            changes = self._places.changes()
        if changes is not None:
            emit(changes)


class _Permit:
    """The account's leave to make one call, attempt by attempt."""

    __slots__ = ("_leases", "_outer", "_place")

    def __init__(self, leases: AccountLeases) -> None:
        self._leases = leases
        self._place: Place | None = None

    def before_attempt(self, attempt: Attempt) -> None:
        """Waits for a place, as AccountLeases.take says."""
        outer = _holding.get()
        if outer is None or outer[0] is not self._leases or not outer[1].is_held:
            self._place = self._leases.take(attempt)
            self._outer = _holding.set((self._leases, self._place))

    def after_attempt(self, error: BaseException | None) -> None:
        """Leaves the place."""
        if isinstance(error, RateLimited):
            self._leases.refused(error.api_message)
        if self._place is not None:
            _holding.reset(self._outer)
            self._leases.leave(self._place)
            self._place = None

    def after_call(self, call: Call, error: BaseException | None) -> None:
        """Nothing is left to do."""


def limit_named_in(api_message: str) -> int | None:
    """How many requests at once the API says that the account may have; None if it does not say so."""
    named = _NAMED_LIMIT.search(api_message)
    return None if named is None else int(named[1])


def account_leases(settings: Settings) -> AccountLeases | None:
    """The leases of this process under these settings; None when LLM_ACCOUNT_LIMIT is off, or in the rollback.

    Raises:
        ConfigError: redis-py is not installed, or cannot understand the server's address.

    Threads: any.
    """
    if not settings.account_limit or not settings.use_async:
        return None
    return _leases_at(settings.account_server_url, settings.account_limit)


@functools.lru_cache(maxsize=100)
def _leases_at(url: str, limit: int) -> AccountLeases:
    try:
        from ..account_server import AccountServer  # redis-py is an extra
    except ImportError as exc:
        raise ConfigError("LLM_ACCOUNT_LIMIT needs redis-py: install the extra `tasks`") from exc
    try:
        AccountServer(url)
    except ValueError as exc:
        raise ConfigError("LLM_ACCOUNT_LIMIT: the address of the server (not shown) is wrong") from exc
    return AccountLeases(limit, functools.partial(AccountServer, url))


_all: weakref.WeakSet[AccountLeases] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    _holding.set(None)  # a place of the parent
    for leases in _all:
        leases._reset()


os.register_at_fork(after_in_child=_after_fork_in_child)
