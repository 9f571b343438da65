"""Async methods over a blocking client that is not edited."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

from .answers import blank_result, check_text, outcome_of, returned_or_raised
from .calls.caller import Caller, in_turns
from .calls.retries import Policy, default_policy
from .client import DeepSeekClient
from .engines.threads import WorkerPool
from .errors import ConfigError, DeepSeekError
from .models import RETIRED
from .settings import Settings
from .wire.exchange import Exchange

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

    _own = frozenset({"_caller", "_client", "_errors"})

    def __init__(
        self, client: Any, *, pool: WorkerPool | None = None, settings: Settings | None = None
    ) -> None:
        self._client = client
        self._caller = Caller(client, pool, settings or Settings.from_env(os.environ))

    def __getattr__(self, name: str) -> Any:
        if name in self._own:  # not set yet: copy, pickle and a failed __init__ ask early
            raise AttributeError(name)
        method = name.removesuffix("_async")
        is_own = inspect.getattr_static(self._client, name, None) is not None
        if method != name and not is_own and callable(getattr(self._client, method, None)):
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
        """Refuses further calls of this object. Idempotent; the pool and the client are not closed."""
        self._caller.close()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    async def _call_async(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        return await self._caller.on_pool(returned_or_raised, self._caller.until(), method, *args, **kwargs)


class AsyncDeepSeekClient(AsyncFacade):
    """The legacy client with `chat_async`, `parse_async` and `chat_many_async`; the upgrade of a deployment.

    Args:
        api_key, model: an empty key means the settings' key; the settings' model comes before `model`.
        client: wrap this client, as it is configured, instead of building a DeepSeekClient.
        pool: None for the process-wide pool, sized by LLM_MAX_WORKERS.
        settings: None for `Settings.from_env(os.environ)`.
        errors: "swallow" logs a failed call and returns what the legacy client does ({"text": ""}, intent
            "unknown"); "raise" raises a DeepSeekError that says what really happened.
        policy: which failures are tried again, and when no call is made. None for one of this client's own; or, with
            neither `client` nor `settings`, for the process-wide one of its key.

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
        policy: Policy | None = None,
    ) -> None:
        if errors not in ("swallow", "raise"):
            raise ConfigError(f'errors={errors!r}: need "swallow" or "raise"')
        is_default = client is None and settings is None
        settings = settings or Settings.from_env(os.environ)
        if client is None:
            key = (api_key or "").strip() or settings.api_key
            client = DeepSeekClient(key, settings.model or model)
            client.api_key = key  # a key of the environment must not reach the address of other settings
            client.base_url = settings.base_url
            if client.model in RETIRED and not settings.transport:
                _logger.warning(
                    "DEEPSEEK_TRANSPORT=0 sends the retired model %s as it is, and the API refuses it: every call "
                    "will come back blank; DEEPSEEK_MODEL names another", client.model,
                )  # fmt: skip
        if policy is None and is_default:
            policy = default_policy(client.api_key, settings)
        self._client, self._errors = client, errors
        self._caller = Caller(client, pool, settings, policy or Policy(settings))

    async def chat_async(self, prompt: str, *, deadline_s: float | None = None) -> dict[str, Any]:
        """The model's answer, {"text": str}, within `deadline_s` seconds (None: LLM_DEADLINE_S)."""
        return await self._answer_async(self._caller.until(deadline_s), "chat", prompt)

    async def parse_async(
        self, utterance: str, ctx: Any, *, deadline_s: float | None = None
    ) -> dict[str, Any]:
        """What a player meant, {"intent": str, "slots": dict, "allowed": bool, "reason": str}."""
        return await self._answer_async(self._caller.until(deadline_s), "parse", utterance, ctx)

    async def chat_many_async(
        self, prompts: Iterable[str], *, return_exceptions: bool = False, deadline_s: float | None = None
    ) -> list[Any]:
        """The answers to many prompts, in their order; at most LLM_MAX_WORKERS are under way at a time.

        Args:
            return_exceptions: puts each failure in its prompt's place, whatever the mode; otherwise the first
                failure with errors="raise" cancels the rest.
            deadline_s: seconds for all of them together; None gives each its own LLM_DEADLINE_S from its turn.
        """
        common = None if deadline_s is None else self._caller.until(deadline_s)

        async def chat(prompt: str) -> Any:
            return await self._call_until(common or self._caller.until(), "chat", prompt)

        def failed(error: Exception) -> Any:
            return error if return_exceptions else self._swallowed("chat", error)

        return await in_turns(chat, list(prompts), self._caller.pool.stats()["workers"], failed)

    def chat(self, prompt: str, *, deadline_s: float | None = None) -> dict[str, Any]:
        """The legacy method in the caller's thread, over the shared transport, tried once, ended at the deadline."""
        return self._answer_here(self._caller.until(deadline_s), "chat", prompt)

    def parse(self, utterance: str, ctx: Any, *, deadline_s: float | None = None) -> dict[str, Any]:
        """As `chat`."""
        return self._answer_here(self._caller.until(deadline_s), "parse", utterance, ctx)

    async def _call_until(self, deadline: float, method: str, text: str, *more: Any) -> Any:
        check_text(method, text)
        return await self._caller.on_pool(self._judge, deadline, method, text, *more)

    async def _answer_async(self, deadline: float, method: str, *args: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = await self._call_until(deadline, method, *args)
        except DeepSeekError as exc:
            answer = self._swallowed(method, exc)
        return answer

    def _answer_here(self, deadline: float, method: str, text: str, *more: Any) -> dict[str, Any]:
        try:
            check_text(method, text)
            answer: dict[str, Any] = self._caller.here(self._judge, deadline, method, text, *more)
        except DeepSeekError as exc:
            answer = self._swallowed(method, exc)
        return answer

    def _judge(self, exchange: Exchange) -> Any:
        if not self._caller.settings.transport:
            return returned_or_raised(exchange)
        return outcome_of(exchange, self._client)

    def _swallowed(self, method: str, error: Exception) -> dict[str, Any]:
        if self._errors == "raise" or not isinstance(error, DeepSeekError):
            raise error
        _logger.warning("%s failed (%s): %s", method, error.code, error)
        return blank_result(method)
