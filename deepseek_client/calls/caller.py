"""Makes the calls of one client: where they run, how long they may take, and what happens when one fails."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from ..engines import inline
from ..engines.shared import default_pool
from ..engines.threads import WorkerPool
from ..engines.turns import later_turn
from ..errors import (
    CallerLeft,
    CircuitOpen,
    ClientClosed,
    DeepSeekError,
    Overloaded,
)
from ..settings import Settings
from ..wire import adapter, sockets
from ..wire.exchange import Exchange, Rules
from ..wire.failures import failure_of_end
from . import ending
from .call import Attempt, Call, EndedCall
from .options import check_engine, check_seconds, current_options, current_request
from .retries import Policy

__all__ = ["Caller", "deadline_in"]

_logger = logging.getLogger(__name__)


def deadline_in(seconds: float) -> float:
    """The moment on `time.monotonic()` at which a call that starts now is over.

    The time that the running web request has waited for its server counts, as in `call_options`.

    Raises:
        InvalidRequest: that is not a number of seconds, at least 0.
    """
    check_seconds(seconds)
    request = current_request()
    return time.monotonic() + (seconds if request is None else request.seconds_left(seconds))


class Caller:
    """Makes the calls of one client: says where they run and how long they may take, and reports their end.

    Args:
        client: any object with blocking methods.
        pool: None for the process-wide pool of the size that `settings` give.
        policy: None tries nothing again and has no guards.
        abort: ends a call of the client's where nothing else does; see AsyncFacade.

    Threads: any number of threads and event loops may call at once.
    """

    rules = Rules(may_catch_end=False)
    """What holds for the client's HTTP requests."""

    def __init__(
        self,
        client: Any,
        settings: Settings,
        pool: WorkerPool | None = None,
        policy: Policy | None = None,
        abort: Callable[[EndedCall], object] | None = None,
    ) -> None:
        if settings.use_async:
            check_engine(settings.engine)
        self.client = client
        self.settings = settings
        self.policy = policy
        self._pool = pool
        self._abort = abort
        self._guards = () if policy is None else policy.guards
        self.is_closed = False

    @property
    def pool(self) -> WorkerPool:
        """Where calls run."""
        return self._pool or default_pool(self.settings.max_workers, self.settings.queue_limit)

    def call(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float | None = None
    ) -> Call:
        """A call that begins now.

        Args:
            deadline: moment on `time.monotonic()`; None for that of `call_options`, or LLM_DEADLINE_S from now.
        """
        if deadline is None:
            deadline_s = current_options().deadline_s
            deadline = deadline_in(self.settings.deadline_s if deadline_s is None else deadline_s)
        return Call(method, args, kwargs, time.monotonic(), deadline)

    async def run(self, call: Call) -> Any:
        """Runs the call on the pool, again after a failure where the policy says so.

        With USE_ASYNC_DEEPSEEK=0 it is `run_here`, and waits for nothing.

        Raises:
            DeepSeekError: of the last attempt that was sent, or what the pool or a guard raises.
            ClientClosed: after `close`.
            TypeError: the method gives a stream, and the call has nothing that takes it.
        """
        if call.take is None:
            call.take = call.plain
        if not self.settings.use_async:
            return self.run_here(call)
        error: BaseException | None = None
        try:
            if (turn := later_turn()) is not None:
                await turn
            self._begin(call)
            pool = self._pool or self.pool
            run = self._engine(pool)
            while True:
                attempt = self._attempt(call)
                try:
                    result = await run(attempt, deadline=call.deadline)
                except BaseException as exc:
                    call.attempted(exc)
                    wait_s = self._seconds_to_next(call, exc)
                    if wait_s is None:
                        raise
                else:
                    call.attempted(None)
                    return result
                await ending.back_off(wait_s, pool)
        except BaseException as exc:
            error = exc
            raise
        finally:
            call.end(error)
            error = None  # its traceback holds this frame: a cycle, which would keep the prompt in memory

    def run_here(self, call: Call) -> Any:
        """Runs the call in this thread, once: in a slot of the pool, or without one under USE_ASYNC_DEEPSEEK=0.

        Raises:
            as `run`.
        """
        call.mode = "sync"
        error: BaseException | None = None
        try:
            self._begin(call)
            attempt = self._attempt(call)
            try:
                if self.settings.use_async:
                    result = inline.run(self.pool, attempt, deadline=call.deadline)
                else:
                    with ending.unlimited(attempt):
                        result = attempt()
            except BaseException as exc:
                call.attempted(exc)
                raise
            call.attempted(None)
            return result
        except BaseException as exc:
            error = exc
            raise
        finally:
            call.end(error)
            error = None  # its traceback holds this frame: a cycle, which would keep the prompt in memory

    def chunks_here(self, call: Call) -> Generator[Any, None, None]:
        """The chunks of a call that gives a stream, each made in the thread that takes it: the rollback.

        Raises:
            as `run`.
        """
        call.mode, call.is_stream = "sync", True
        error: BaseException | None = None
        try:
            self._begin(call)
            try:
                with ending.unlimited(self._attempt(call)) as attempt:
                    yield from attempt.chunks()
            except BaseException as exc:
                call.attempted(exc)
                raise
            call.attempted(None)
        except BaseException as exc:
            error = exc
            raise
        finally:
            call.end(error)
            error = None  # its traceback holds this frame: a cycle, which would keep the prompt in memory

    def outcome(self, attempt: Attempt) -> Any:
        """What an attempt gave: here what the client itself says; runs in the attempt's thread.

        Raises:
            DeadlineExceeded, PoolClosed: it was ended, whatever the client made of that.
        """
        exchange = attempt.exchange
        if exchange.aborted is not None or (attempt.raised is not None and exchange.is_late()):
            raise failure_of_end(exchange) from attempt.raised
        if attempt.raised is not None:
            raise attempt.raised
        return attempt.result

    def _engine(self, pool: WorkerPool) -> Callable[..., Awaitable[Any]]:
        """What runs the attempts, in slots of the pool."""
        if (current_options().engine or self.settings.engine) == "loop" and sockets.are_watched():
            from ..engines import loop  # greenlet is an extra

            return functools.partial(loop.run, pool)
        return pool.run

    def _begin(self, call: Call) -> None:
        if self.is_closed:
            raise ClientClosed("This client was closed.")
        if ending.is_ending:
            ending.check()
        if (request := current_request()) is not None:
            request.admit(call)
        if self.policy is not None:
            self.policy.note_call()
        call.begin(self._guards)

    def _attempt(self, call: Call) -> Attempt:
        if self.settings.transport:
            adapter.install()
        exchange = Exchange(
            call.deadline,
            self.settings.read_timeout_s,
            self.rules,
            is_seen=self.settings.transport,
            keeps_deadline=call.mode == "sync",  # otherwise the pool does
        )
        exchange.client, exchange.method = self.client, call.method
        if self._abort is not None:
            exchange.on_abort = functools.partial(self._tell_client, call, exchange)
        call.last = Attempt(self, call, exchange)
        return call.last

    def _tell_client(self, call: Call, exchange: Exchange) -> None:
        """Has the client's own `abort` end the call; in a thread of its own, for it may block."""
        ended = EndedCall(call.method, call.args, call.kwargs, exchange.thread_id, exchange.aborted or "")

        def tell() -> None:
            try:
                if self._abort is not None and exchange.ended is None:
                    self._abort(ended)
            except Exception:
                _logger.exception("abort of %s failed", call.method)

        try:
            threading.Thread(target=tell, name="llm-abort", daemon=True).start()
        except RuntimeError:  # no more threads
            _logger.warning("abort of %s was not called: no thread can be started", call.method)

    def _seconds_to_next(self, call: Call, error: BaseException) -> float | None:
        """How long to wait before the call is tried again; None when it has failed.

        A stream is never tried again: nobody can take back the chunks that were read.
        """
        if self.policy is None or call.is_stream or not isinstance(error, DeepSeekError):
            return None
        has_left = isinstance(error, CallerLeft)
        was_refused = has_left or isinstance(error, (CircuitOpen, Overloaded))
        if was_refused:
            if not call.failures:
                return None
            error = call.failures[-1]  # nothing was sent: the call fails by what the attempt before it met
        call.failures.append(error)
        wait_s = None
        if not has_left and not self.pool.is_closed():
            wait_s = self.policy.seconds_to_next(call.failures, call.deadline)
        if wait_s is None and was_refused:
            raise error
        return wait_s
