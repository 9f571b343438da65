"""The DeepSeek client with async methods: what a deployment changes its client for."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import models
from .answers import blank_result, outcome_of
from .calls.batches import gather_bounded
from .calls.call import Attempt, Call
from .calls.caller import Caller, deadline_in
from .calls.retries import Policy, default_policy
from .client import DeepSeekClient, _field
from .engines.threads import WorkerPool
from .errors import CircuitOpen, ConfigError, DeepSeekError, InvalidRequest
from .events import FailureSwallowed, emit
from .facade import AsyncFacade
from .fork_safe import ForkSafeLock
from .settings import Settings
from .wire.exchange import Rules

__all__ = ["AsyncDeepSeekClient", "check_input", "get_default_client"]

_logger = logging.getLogger(__name__)

# A quarter of a second; an aborted call comes back within some 20 ms.
_SETTLE_LOOKS, _LOOK_AGAIN_S = 125, 0.002
_UTTERANCE_CHARS = 200  # of the legacy client
_PARAMETERS = {"chat": ("prompt",), "parse": ("utterance", "ctx")}  # likewise
# A model's longest answer, each character escaped, has some 4 MiB. A hundred threads that read endless bodies would
# take all memory, and to parse more takes so long that the deadline is of no use.
_REPLY_LIMIT_BYTES = 4 * 1024 * 1024


class AsyncDeepSeekClient(AsyncFacade):
    """The legacy client with `chat_async`, `parse_async` and `chat_many_async`; the upgrade of a deployment.

    Args:
        api_key, model: an empty key means the settings' key; the settings' model comes before `model`.
        client: wrap this client, as it is configured, instead of building a DeepSeekClient. Its `chat` and `parse`
            may take and return what they like.
        pool: None for the process-wide pool, sized by LLM_MAX_WORKERS.
        settings: None for `Settings.from_env(os.environ)`.
        errors: "swallow" logs a failed call and gives what the client itself gave for it, which the legacy client does
            as {"text": ""} and intent "unknown"; a call that never ran gives the legacy client's blank. "raise" raises
            a DeepSeekError that says what really happened.
        policy: which failures are tried again, and when no call is made. None for one of this client's own; or, with
            neither `client` nor `settings`, for the process-wide one of its key.

    Threads: as AsyncFacade.
    """

    __facade_caller__: _DeepSeekCaller

    def __init__(
        self,
        api_key: str = "",
        model: str = "deepseek-chat",
        *,
        client: Any = None,
        pool: WorkerPool | None = None,
        settings: Settings | None = None,
        errors: str = "swallow",
        policy: Policy | None = None,
    ) -> None:
        if errors not in ("swallow", "raise"):
            raise ConfigError(f'errors={errors!r}: need "swallow" or "raise"')
        is_default = client is None and settings is None
        settings = settings or Settings.from_env(os.environ)
        if client is None:
            client = _build(api_key, model, settings)
        if policy is None:
            policy = default_policy(client.api_key, settings) if is_default else Policy(settings)
        self.__facade_caller__ = _DeepSeekCaller(client, settings, pool, policy, errors == "swallow")

    @property
    def settings(self) -> Settings:
        """What the client was made with."""
        return self.__facade_caller__.settings

    @property
    def pool(self) -> WorkerPool:
        """Where the calls run."""
        return self.__facade_caller__.pool

    def refusal(self) -> CircuitOpen | None:
        """What the circuit breaker would refuse a call with now; None when it would let it through."""
        policy = self.__facade_caller__.policy
        return None if policy is None else policy.breaker.refusal()

    async def chat_async(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answer to `prompt`, {"text": str}; arguments and result are those of the client's `chat`."""
        caller = self.__facade_caller__
        call = caller.call("chat", args, kwargs)
        try:
            caller.check(call)
            return await caller.run(call)
        except DeepSeekError as exc:
            await caller.settle(call)
            return caller.swallow(call, exc)

    async def parse_async(self, *args: Any, **kwargs: Any) -> Any:
        """What a player meant by `utterance` in `ctx`, {"intent": str, "slots": dict, "allowed": bool, "reason": str}.

        The arguments and the result are those of the client's `parse`.
        """
        caller = self.__facade_caller__
        call = caller.call("parse", args, kwargs)
        try:
            caller.check(call)
            return await caller.run(call)
        except DeepSeekError as exc:
            await caller.settle(call)
            return caller.swallow(call, exc)

    def chat(self, *args: Any, **kwargs: Any) -> Any:
        """The client's `chat` in the caller's thread, tried once, in a slot of the pool and within the deadline."""
        return self.__facade_caller__.answer_here("chat", args, kwargs)

    def parse(self, *args: Any, **kwargs: Any) -> Any:
        """As `chat`."""
        return self.__facade_caller__.answer_here("parse", args, kwargs)

    async def chat_many_async(
        self, prompts: Iterable[str], *, return_exceptions: bool = False, deadline_s: float | None = None
    ) -> list[Any]:
        """The answers to many prompts, in their order; at most LLM_MAX_WORKERS are under way at a time.

        Args:
            return_exceptions: puts each failure in its prompt's place, whatever the mode; otherwise the first failure
                with errors="raise" cancels the rest, and errors="swallow" logs how many there were, by their codes.
            deadline_s: seconds for all of them together; None gives each its own deadline from its turn.
        """
        batch = _Batch(self.__facade_caller__, return_exceptions, deadline_s)
        results = await batch.run([_Entry(prompt) for prompt in prompts])
        batch.tell()
        return results

    def chat_many(
        self, prompts: Iterable[str], *, return_exceptions: bool = False, deadline_s: float | None = None
    ) -> list[Any]:
        """`chat_many_async` for a thread without an event loop, which it blocks."""
        return asyncio.run(
            self.chat_many_async(prompts, return_exceptions=return_exceptions, deadline_s=deadline_s)
        )


class _DeepSeekCaller(Caller):
    """Makes calls whose replies it understands."""

    rules = Rules(models.with_successor, _REPLY_LIMIT_BYTES, stays_at_origin=True)

    def __init__(
        self, client: Any, settings: Settings, pool: WorkerPool | None, policy: Policy, swallows: bool
    ) -> None:
        super().__init__(client, settings, pool, policy)
        self.swallows = swallows
        self._warns_of_loop = settings.use_async
        self._is_shape_unknown = swallows and settings.use_async and not isinstance(client, DeepSeekClient)

    def outcome(self, attempt: Attempt) -> Any:
        call = attempt.call
        if call.method not in ("chat", "parse") or call.is_stream:
            return super().outcome(attempt)
        result = self._judged(attempt) if self.settings.transport else super().outcome(attempt)
        if self._is_shape_unknown:
            self._is_shape_unknown = False
            self._warn_of_blank(call.method, result)
        return result

    def _judged(self, attempt: Attempt) -> Any:
        try:
            return outcome_of(attempt, self.client)
        except DeepSeekError as exc:
            redirect = attempt.exchange.redirect
            if redirect is not None and exc is not attempt.exchange.error:
                exc.args = (f"{exc} It had redirected the request to {redirect.host}.",)
            raise

    def _warn_of_blank(self, method: str, result: Any) -> None:
        """Says it if the blank of a call that is never made cannot stand for what the client gives."""
        blank = blank_result(method)
        if not (isinstance(result, Mapping) and blank.keys() <= result.keys()):
            _logger.warning(
                "the client's %s gives a %s, but a call that is never made (the queue is full, for one) gives %s: "
                "errors='raise' makes it an exception",
                method,
                type(result).__name__,
                blank,
            )

    def check(self, call: Call) -> None:
        """Refuses what `check_input` refuses, of the legacy client alone: another one knows what it can send."""
        if not isinstance(self.client, DeepSeekClient):
            return
        args = call.args
        if call.kwargs:
            names = _PARAMETERS[call.method][len(args) :]
            args += tuple(call.kwargs[name] for name in names if name in call.kwargs)
        if args:
            check_input(call.method, args, self.settings.prompt_limit)

    def _begin(self, call: Call) -> None:
        # By its path a call comes here from no method of AsyncDeepSeekClient's.
        if call.find is not None and call.method in _PARAMETERS:
            self.check(call)
        super()._begin(call)

    def answer_here(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the method answers in this thread."""
        if self._warns_of_loop and asyncio._get_running_loop() is not None:
            self._warns_of_loop = False
            _logger.warning(
                "%s blocks the event loop of its thread, and whatever else runs there: await %s_async instead",
                method,
                method,
            )
        call = self.call(method, args, kwargs)
        try:
            self.check(call)
            return self.run_here(call)
        except DeepSeekError as exc:
            return self.swallow(call, exc)

    async def settle(self, call: Call) -> None:
        """Lets the client say what it makes of a call that was ended: its thread comes back in a moment.

        Without that it would be chance whether the caller gets the client's own failure or a blank.
        """
        attempt = call.last
        if not self.swallows or attempt is None or attempt.began is None:
            return
        for _ in range(_SETTLE_LOOKS):
            if attempt.has_run:
                call.last_run = attempt
            if attempt.exchange.ended is not None:
                return
            await asyncio.sleep(_LOOK_AGAIN_S)

    def swallow(self, call: Call, error: DeepSeekError) -> Any:
        """What stands in for a failed call's answer; raises the error, or what the client raised, where that is due."""
        if not self.swallows:
            raise error
        note = f" [{error.api_message}]" if error.api_message else ""
        _logger.warning("%s failed (%s): %s%s", call.method, error.code, error, note)
        emit(FailureSwallowed(call.method, error.code))
        attempt = call.last_run
        if attempt is None:  # it never ran, or cannot be ended
            return blank_result(call.method)
        if attempt.raised is not None:
            raise attempt.raised
        return attempt.result


@dataclass
class _Entry:
    """One prompt of a batch, and the call that was last made for it."""

    prompt: str
    call: Call | None = None


class _Batch:
    """The calls of one `chat_many_async`."""

    def __init__(self, caller: _DeepSeekCaller, return_exceptions: bool, deadline_s: float | None) -> None:
        self._caller = caller
        self._return_exceptions = return_exceptions
        self._deadline = None if deadline_s is None else deadline_in(deadline_s)
        self._swallowed: Counter[str] = Counter()

    async def run(self, entries: list[_Entry]) -> list[Any]:
        """The results, in the order of the entries."""
        if self._caller.settings.use_async:
            pool = self._caller.pool
            return await gather_bounded(self._ask, entries, pool.workers, self._failed, pool.has_room)
        results = []
        for entry in entries:
            try:
                results.append(self._caller.run_here(self._call(entry)))
            except Exception as exc:
                results.append(self._failed(entry, exc))
        return results

    def tell(self) -> None:
        """Says how many failures the caller got as blanks."""
        if self._swallowed:
            codes = ", ".join(f"{code} {number}" for code, number in self._swallowed.most_common())
            _logger.warning("chat_many: %d prompts failed (%s)", self._swallowed.total(), codes)

    async def _ask(self, entry: _Entry) -> Any:
        call = self._call(entry)
        try:
            return await self._caller.run(call)
        except DeepSeekError:
            if not self._return_exceptions:
                await self._caller.settle(call)
            raise

    def _call(self, entry: _Entry) -> Call:
        call = entry.call = self._caller.call("chat", (entry.prompt,), {}, self._deadline)
        self._caller.check(call)
        return call

    def _failed(self, entry: _Entry, error: Exception) -> Any:
        if self._return_exceptions:
            return error
        if not isinstance(error, DeepSeekError):
            raise error
        assert entry.call is not None
        result = self._caller.swallow(entry.call, error)
        self._swallowed[error.code] += 1
        return result


def check_input(method: str, args: Sequence[Any], limit: int) -> None:
    """Refuses arguments of `chat` or `parse` that the legacy client would swallow, or send at any length.

    Args:
        limit: LLM_PROMPT_LIMIT, for what a caller brings in: the legacy client's own words are not counted.

    Raises:
        InvalidRequest: the text is no str, or text and context together are too long.

    Threads: any.
    """
    text, *context = args
    if not isinstance(text, str):
        raise InvalidRequest(f"The text of {method} is {text!r:.40}: need a str.")
    chars = len(text)
    if method == "parse":  # of which the legacy client sends the beginning
        chars = min(chars, _UTTERANCE_CHARS) + sum(map(_context_chars, context))
    if chars > limit:
        raise InvalidRequest(f"The {method} would send {chars} characters: need at most {limit}.")


def _context_chars(context: Any) -> int:
    """How many characters of a parse's context the legacy client sends, or a few more."""
    player, laws = _field(context, "player", None), _field(context, "laws", ())
    fields = [_field(context, "scene", ""), _field(context, "target_realm", ""), _field(player, "realm", "")]
    fields += [_field(law, "code", "") for law in laws] if isinstance(laws, (list, tuple)) else []
    return sum(len(field) for field in fields if isinstance(field, str))


def _build(api_key: str, model: str, settings: Settings) -> DeepSeekClient:
    key = (api_key or "").strip() or settings.api_key
    client = DeepSeekClient(key, settings.model or model)
    client.api_key = key  # a key of the environment must not reach the address of other settings
    client.base_url = settings.base_url
    if client.model in models.RETIRED and not settings.transport:
        _logger.warning(
            "DEEPSEEK_TRANSPORT=0 sends the retired model %s as it is, and the API refuses it: every call will come "
            "back blank; DEEPSEEK_MODEL names another", client.model,
        )  # fmt: skip
    return client


_default: AsyncDeepSeekClient | None = None  # guarded by _lock
_lock = ForkSafeLock()


def get_default_client() -> AsyncDeepSeekClient:
    """The process's own client, built from the environment at the first call; also after a fork.

    Raises:
        ConfigError: a variable of the environment is wrong.

    Threads: any.
    """
    global _default
    with _lock:
        if _default is None or _default.__facade_caller__.is_closed:
            _default = AsyncDeepSeekClient()
        return _default


def _after_fork_in_child() -> None:
    global _default
    _default = None


os.register_at_fork(after_in_child=_after_fork_in_child)
