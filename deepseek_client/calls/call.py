"""One call: its attempts so far, what came of them, and the report of its end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple, Protocol

from .. import events
from ..engines.admission import NOT_STARTED
from ..errors import DeadlineExceeded, DeepSeekError
from ..events import AttemptFinished, CallFinished, emit
from ..wire.exchange import Exchange, Interrupted
from .chunks import chunks_of, is_stream, plain

__all__ = ["Attempt", "Call", "Client", "EndedCall", "Guard", "Permit", "calls_in_flight"]

_in_flight: set[Call] = set()  # added to and taken from in one step each: needs no lock
calls_in_flight = _in_flight.copy
"""The calls of this process that have begun and not ended, wherever they run or wait."""


class EndedCall(NamedTuple):
    """A call that was ended while its client's method runs: what an AsyncFacade's `abort` is given.

    Attributes:
        method, args, kwargs: what was called.
        thread_id: of the thread that runs it, as `threading.get_ident()` gives it there.
        reason: "deadline", "cancelled" or "closing".
    """

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    thread_id: int
    reason: str


class Permit(Protocol):
    """A guard's leave to make one call.

    Threads: `before_attempt` and `after_attempt` are called in the thread of an attempt, the rest where the call waits.
    """

    def before_attempt(self, attempt: Attempt) -> None:
        """Right before the attempt; what it raises is the attempt's failure.

        It may wait, if it sets the attempt's `end_wait`, and ends with the deadline of the attempt's exchange.
        """

    def after_attempt(self, error: BaseException | None) -> None:
        """The attempt's thread is done with it, even if `before_attempt` was never called or has raised."""

    def after_call(self, call: Call, error: BaseException | None) -> None:
        """The call has ended, with this error or with an answer (None)."""


class Guard(Protocol):
    """Something that has a say in whether a call is made: a circuit breaker, an account's limit.

    Threads: any.
    """

    def before_call(self) -> Permit:
        """Lets a call begin, or raises a DeepSeekError; then nothing was sent."""


class Call:
    """What a caller asked for, under way.

    Attributes:
        method, args, kwargs: of the client.
        mode: "async" when it runs on the pool, "sync" when it runs in its caller's thread.
        deadline: moment on `time.monotonic()` at which its time is over.
        began: moment at which it began.
        ran_s: seconds in a thread, of all attempts.
        attempts, requests: how often the method was run, and the HTTP requests that it made.
        last: the attempt of now, or the last one; None before the first.
        last_run: the last attempt whose method has returned or raised.
        usage: the reply's token counts as the API names them, summed over the attempts.
        failures: of its attempts; one that was refused before it was sent counts as the failure before it again.
        find: finds the function to run on the client; None for its attribute `method`.
        take: makes of what the method returned the attempt's result, in the attempt's thread; None takes it as it is.
        is_stream: whether the method gives chunks, as far as that is known: what they say is the client's affair.
        first_chunk_s: seconds from its beginning to a stream's first chunk, None before that.

    Threads: one thread or task at a time.
    """

    # Of a call that has only begun: ten thousand may do so at once.
    mode = "async"
    ran_s = 0.0
    attempts = 0
    requests = 0
    last: Attempt | None = None
    last_run: Attempt | None = None
    find: Callable[[Any], Callable[..., Any]] | None = None
    take: Callable[[Any], Any] | None = None
    is_stream = False
    first_chunk_s: float | None = None

    def __init__(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], began: float, deadline: float
    ) -> None:
        self.method = method
        self.args = args
        self.kwargs = kwargs
        self.began = began
        self.deadline = deadline
        self.usage: dict[str, Any] = {}
        self.failures: list[DeepSeekError] = []
        self.permits: list[Permit] = []

    def begin(self, guards: Iterable[Guard]) -> None:
        """Asks the guards.

        Raises:
            DeadlineExceeded: there is no time left. Nothing was sent.
            DeepSeekError: a guard refuses. Nothing was sent.
        """
        _in_flight.add(self)
        if self.deadline <= self.began:
            raise DeadlineExceeded(NOT_STARTED)
        for guard in guards:
            self.permits.append(guard.before_call())

    def run(self, client: Any) -> Any:
        """What the client's method returns."""
        function = getattr(client, self.method) if self.find is None else self.find(client)
        return function(*self.args, **self.kwargs)

    def plain(self, result: Any) -> Any:
        """The result, as an event loop may have it.

        Raises:
            TypeError: it is a stream; it is closed.
        """
        self.is_stream = is_stream(result)
        return plain(result, self.method)

    def note_chunk(self) -> None:
        """A chunk of its stream is there."""
        if self.first_chunk_s is None:
            self.first_chunk_s = time.monotonic() - self.began

    def attempted(self, error: BaseException | None) -> None:
        """Adds the last attempt, unless it ended before a thread began it."""
        attempt = self.last
        if attempt is None or attempt.began is None:
            return
        self.attempts += 1
        if attempt.has_run:
            self.last_run = attempt
        self.requests += attempt.exchange.requests
        self.ran_s += (attempt.exchange.ended or time.monotonic()) - attempt.began
        for name, number in attempt.usage.items():
            if type(number) is int:
                self.usage[name] = self.usage.get(name, 0) + number
        if events.listeners:
            emit(AttemptFinished(self.method, _code_of(error), attempt.usage))

    def end(self, error: BaseException | None) -> None:
        """Tells the guards, and reports."""
        _in_flight.discard(self)
        self.failures.clear()  # whose tracebacks hold this call
        self.take = None  # a stream's, too
        for permit in self.permits:
            permit.after_call(self, error)
        if events.listeners:
            waited_s = time.monotonic() - self.began - self.ran_s
            emit(
                CallFinished(
                    self.method, self.mode, waited_s, self.ran_s, _code_of(error), self.usage, self.attempts,
                    note=self._note(error),
                    finish_reason="" if self.last is None else self.last.finish_reason,
                    first_chunk_s=self.first_chunk_s,
                )
            )  # fmt: skip

    def held_s(self, error: BaseException | None) -> float:
        """Seconds the API had the call. After a deadline, the whole call counts: queueing cannot hide a hung API."""
        is_over = isinstance(error, DeadlineExceeded) and self.attempts > 0
        return time.monotonic() - self.began if is_over else self.ran_s

    def _note(self, error: BaseException | None) -> str:
        """What an operator should know of this end, "" when the error's code says it all."""
        if isinstance(error, DeadlineExceeded) and self.last and self.last.exchange.overruled_timeout_s:
            timeout_s = self.last.exchange.overruled_timeout_s
            return f"LLM_DEADLINE_S comes before the client's own timeout of {timeout_s:g} s"
        return error.api_message if isinstance(error, DeepSeekError) else ""


class Client(Protocol):
    """Who makes attempts: a Caller.

    Threads: any.
    """

    client: Any

    def outcome(self, attempt: Attempt) -> Any:
        """What an attempt gave; called in its thread when the method has ended."""


class Attempt:
    """One run of the client's method: what an engine calls, and can abort.

    Attributes:
        call: whose attempt it is, until its thread is done with it.
        exchange: what the wire saw of it.
        result: what the method returned, None before that.
        raised: what the method raised, None if nothing.
        has_run: whether it has returned or raised of itself.
        began: moment on `time.monotonic()` at which a thread began to run it, None before that.
        usage: the reply's token counts, once the reply was read.
        finish_reason: why the model ended, in the API's word; "" while that is not known.
        end_wait: ends what a permit waits for before the attempt; None while none waits.

    Threads: one thread runs it; `abort` may be called from any other.
    """

    def __init__(self, caller: Client, call: Call, exchange: Exchange) -> None:
        self.call = call
        self.exchange = exchange
        self.result: Any = None
        self.raised: Exception | None = None
        self.has_run = False
        self.began: float | None = None
        self.usage: dict[str, Any] = {}
        self.finish_reason = ""
        self.end_wait: Callable[[], None] | None = None
        self._caller = caller

    def __call__(self) -> Any:
        """Runs the method in this thread, unless it was aborted before; returns or raises the outcome."""
        caller, call = self._caller, self.call
        error: BaseException | None = None
        try:
            for permit in call.permits:
                permit.before_attempt(self)
            if self.exchange.aborted is None:
                self.began = time.monotonic()
                try:
                    with self.exchange:
                        result = call.run(caller.client)
                        self.result = result if call.take is None else call.take(result)
                    self.has_run = True
                except Interrupted:
                    pass  # the outcome says so, in the words of its reason
                except Exception as exc:
                    self.raised = exc
                    self.has_run = True
            return caller.outcome(self)
        except BaseException as exc:
            error = exc
            raise
        finally:
            # A Response refers to its exchange, and the call to this: cycles would stay in memory until a collection.
            self.exchange.response = None
            del self.call
            for permit in call.permits:
                permit.after_attempt(error)
            error = None  # its traceback holds this frame

    def abort(self, reason: str) -> None:
        """Ends what the attempt's thread is blocked in, on the wire or before it; does not block.

        Args:
            reason: "deadline", "cancelled" or "closing"; the first one is kept.
        """
        self.exchange.abort(reason)
        end_wait = self.end_wait
        if end_wait is not None:
            end_wait()

    def chunks(self) -> Generator[Any, None, None]:
        """Runs the method as `__call__` does, and yields the chunks of the stream that it gives.

        Threads: one thread takes all of them.
        """
        caller, call = self._caller, self.call
        error: BaseException | None = None
        try:
            for permit in call.permits:
                permit.before_attempt(self)
            if self.exchange.aborted is None:
                self.began = time.monotonic()
                try:
                    with self.exchange:
                        for chunk in chunks_of(call.run(caller.client), call.method):
                            call.note_chunk()
                            with self.exchange.left():
                                yield chunk
                    self.has_run = True
                except Interrupted:
                    pass  # the outcome says so, in the words of its reason
                except Exception as exc:
                    self.raised = exc
                    self.has_run = True
            caller.outcome(self)
        except BaseException as exc:
            error = exc
            raise
        finally:
            self.exchange.response = None  # cycles, as in `__call__`
            del self.call
            for permit in call.permits:
                permit.after_attempt(error)
            error = None  # its traceback holds this frame


# A forked child makes none of its parent's calls.
os.register_at_fork(after_in_child=_in_flight.clear)


def _code_of(error: BaseException | None) -> str | None:
    if error is None:
        return None
    if isinstance(error, DeepSeekError):
        return error.code
    was_left = isinstance(error, (asyncio.CancelledError, GeneratorExit))  # or its stream was
    return "cancelled" if was_left else "unexpected"
