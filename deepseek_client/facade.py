"""Async methods over a blocking client that is not edited."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

from . import transport
from .calls import call_async, call_here, in_turns, returned_or_raised
from .client import DeepSeekClient
from .errors import ConfigError, DeepSeekError, PoolClosed
from .exchange import Exchange
from .pool import WorkerPool, default_pool
from .replies import blank_result, outcome_of
from .settings import Settings

__all__ = ["AsyncDeepSeekClient", "AsyncFacade"]

_logger = logging.getLogger(__name__)


class AsyncFacade(AbstractContextManager[Any], AbstractAsyncContextManager[Any]):
    """Gives every method `name` of a blocking client (any object) an awaitable twin `name_async`, run on a pool.

    What the method returns or raises comes back unchanged; WorkerPool.run says what the pool raises. Every other
    attribute is the client's own, to read and to set.

    Args:
        pool: where the calls run; None for the process-wide pool of the size that `settings` give.
        settings: None for `Settings.from_env(os.environ)`.

    Threads: as thread-safe as the client: up to LLM_MAX_WORKERS of its methods run at once, for any number of
        event loops, also after a fork.
    """

    _own = frozenset({"_client", "_pool", "_settings", "_closed", "_errors"})

    def __init__(
        self, client: Any, *, pool: WorkerPool | None = None, settings: Settings | None = None
    ) -> None:
        self._settings = settings or Settings.from_env(os.environ)
        self._client = client
        self._pool = pool
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        if name in self._own:  # not set yet: copy, pickle and a failed __init__ ask early
            raise AttributeError(name)
        method = name.removesuffix("_async")
        if method != name and callable(getattr(self._client, method, None)):
            return functools.partial(self._call_async, method)
        return getattr(self._client, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._own:
            object.__setattr__(self, name, value)
        else:
            setattr(self._client, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._client, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {type(self._client).__name__}>"

    def close(self) -> None:
        """Refuses further calls of this object. Idempotent; the pool is shared and stays."""
        self._closed = True

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    async def _call_async(
        self, method: str, *args: Any, _deadline: float | None = None, **kwargs: Any
    ) -> Any:
        exchange, deadline = self._exchange(method), _deadline or self._deadline()
        return await call_async(self._workers(), exchange, self._judge, deadline, args, kwargs)

    def _call_here(self, method: str, *args: Any, _deadline: float) -> Any:
        return call_here(self._exchange(method), self._judge, _deadline, args)

    def _deadline(self, deadline_s: float | None = None) -> float:
        """The moment on `time.monotonic()` at which a call that starts now is over."""
        return time.monotonic() + (self._settings.deadline_s if deadline_s is None else deadline_s)

    def _workers(self) -> WorkerPool:
        return self._pool or default_pool(self._settings.max_workers, self._settings.queue_limit)

    def _exchange(self, method: str) -> Exchange:
        if self._closed:
            raise PoolClosed("This client is closed.")
        if self._settings.transport:
            transport.install()
        return Exchange(method, getattr(self._client, method), record=self._settings.transport)

    def _judge(self, exchange: Exchange) -> Any:
        """What the caller gets of a call that ran to its end."""
        return returned_or_raised(exchange)


class AsyncDeepSeekClient(AsyncFacade):
    """The legacy client with `chat_async`, `parse_async` and `chat_many_async`; the upgrade of a deployment.

    Args:
        api_key, model: an empty key means the settings' key; the settings' model comes before `model`.
        client: wrap this client, as it is configured, instead of building a DeepSeekClient.
        pool: None for the process-wide pool, sized by LLM_MAX_WORKERS.
        settings: None for `Settings.from_env(os.environ)`.
        errors: "swallow" returns a failed call as the legacy client does ({"text": ""}, intent "unknown") and logs
            it; "raise" raises a DeepSeekError that says what really happened.

    Threads: as AsyncFacade.
    """

    def __init__(
        self,
        api_key: str = "",
        model: str = "deepseek-chat",
        *,
        client: Any = None,
        pool: WorkerPool | None = None,
        settings: Settings | None = None,
        errors: str = "swallow",
    ) -> None:
        if errors not in ("swallow", "raise"):
            raise ConfigError(f'errors={errors!r}: need "swallow" or "raise"')
        settings = settings or Settings.from_env(os.environ)
        if client is None:
            client = DeepSeekClient(api_key.strip() or settings.api_key, settings.model or model)
            client.base_url = settings.base_url
        super().__init__(client, pool=pool, settings=settings)
        self._errors = errors

    async def chat_async(self, prompt: str, *, deadline_s: float | None = None) -> dict[str, Any]:
        """The model's answer, {"text": str}, within `deadline_s` seconds (None: LLM_DEADLINE_S)."""
        return await self._answer_async("chat", prompt, _deadline=self._deadline(deadline_s))

    async def parse_async(
        self, utterance: str, ctx: Any, *, deadline_s: float | None = None
    ) -> dict[str, Any]:
        """What a player meant, {"intent": str, "slots": dict, "allowed": bool, "reason": str}."""
        return await self._answer_async("parse", utterance, ctx, _deadline=self._deadline(deadline_s))

    async def chat_many_async(
        self, prompts: Iterable[str], *, return_exceptions: bool = False, deadline_s: float | None = None
    ) -> list[Any]:
        """The answers to many prompts, in their order; at most LLM_MAX_WORKERS are under way at a time.

        Args:
            return_exceptions: puts each failure in its prompt's place, whatever the mode; otherwise the first
                failure with errors="raise" cancels the rest.
            deadline_s: seconds for all of them together; None gives each its own LLM_DEADLINE_S from its turn.
        """
        deadline = None if deadline_s is None else self._deadline(deadline_s)
        call = self._call_async if return_exceptions else self._answer_async
        chat = functools.partial(call, "chat", _deadline=deadline)
        width = self._workers().stats()["workers"]
        return await in_turns(chat, list(prompts), width, return_exceptions=return_exceptions)

    def chat(self, prompt: str, *, deadline_s: float | None = None) -> dict[str, Any]:
        """The legacy method in the caller's thread, over the shared transport, ended at the deadline."""
        return self._answer_here("chat", prompt, _deadline=self._deadline(deadline_s))

    def parse(self, utterance: str, ctx: Any, *, deadline_s: float | None = None) -> dict[str, Any]:
        """The legacy method in the caller's thread, over the shared transport, ended at the deadline."""
        return self._answer_here("parse", utterance, ctx, _deadline=self._deadline(deadline_s))

    async def _answer_async(self, method: str, *args: Any, **options: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = await self._call_async(method, *args, **options)
        except DeepSeekError as exc:
            answer = self._swallowed(method, exc)
        return answer

    def _answer_here(self, method: str, *args: Any, _deadline: float) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._call_here(method, *args, _deadline=_deadline)
        except DeepSeekError as exc:
            answer = self._swallowed(method, exc)
        return answer

    def _judge(self, exchange: Exchange) -> Any:
        if exchange.method in ("chat", "parse") and self._settings.transport:
            return outcome_of(exchange)
        return super()._judge(exchange)

    def _swallowed(self, method: str, error: DeepSeekError) -> dict[str, Any]:
        if self._errors == "raise":
            raise error
        _logger.warning("%s failed (%s): %s", method, error.code, error)
        return blank_result(method)
