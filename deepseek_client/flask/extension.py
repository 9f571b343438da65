"""The extension: what an existing Flask application takes to call its LLM concurrently."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

from flask import Flask, current_app, has_app_context, request_started

from deepseek_client import AsyncDeepSeekClient, AsyncFacade, ConfigError, Settings, asyncify

from ..calls.streams import BlockingStream
from ..facade import has_method, is_per_thread
from ..paths import ClientPath, PathCall, client_of, is_asyncified, with_settings
from ..telemetry import metrics, testimony
from ..wire.greenlets import refuse_eventlet
from . import (
    arrival,
    console_calls,
    envelope,
    first_request,
    gunicorn_leaving,
    leaving,
    log_lines,
    problems,
    rollback,
    streaming,
)
from .loop import SharedLoop, run_on_shared_loop
from .metrics_page import MetricsPage
from .sources import Sources

__all__ = ["DeepSeek"]

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_NAME = "deepseek"


class _Part(NamedTuple):
    """What one application has of a DeepSeek."""

    settings: Settings
    client: Any


class DeepSeek:
    """Gives a Flask application a client whose calls are concurrent, bounded, observable and can be stopped.

    `DeepSeek(app)`, or `DeepSeek()` and `init_app(app)` in a factory; one object may serve several applications. It is
    `app.extensions["deepseek"]`. Each keyword below that is True by default switches one feature off by False.

    Args:
        client: what to wrap: a client with `chat` or `parse` by AsyncDeepSeekClient, a function by asyncify, any other
            by AsyncFacade; what `asyncify` gives stays as it is. None for a DeepSeekClient of the application's
            settings.
        errors: "swallow" or "raise", as for AsyncDeepSeekClient.
        metrics_path: where the metrics are served, if the application has no route for it. None for nowhere.
        shared_loop: async views run on one event loop of the process, not on a new one for each request.
        request_ids: each request has an id, which log lines, answers and requests to the API carry.
        log_lines: one line per call, by the logger `deepseek_client.calls`.
        metrics: calls and requests are counted.
        json_problems: a DeepSeekError that leaves a view is answered with its status, sentence and code.
        rollback: USE_ASYNC_DEEPSEEK=0 is obeyed, and each process testifies which it obeys.
        graceful_stop: a stop of the server ends calls in flight instead of waiting for them.
        refuse_stale_requests: a request that has waited for its server too long, or whose caller has left, makes no
            call; see `arrival`. Not with USE_ASYNC_DEEPSEEK=0.

    Threads: any; the wrapped client must be thread-safe.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        client: Any = None,
        errors: str = "swallow",
        metrics_path: str | None = "/metrics",
        shared_loop: bool = True,
        request_ids: bool = True,
        log_lines: bool = True,
        metrics: bool = True,
        json_problems: bool = True,
        rollback: bool = True,
        graceful_stop: bool = True,
        refuse_stale_requests: bool = True,
    ) -> None:
        self._wrapped = _wrappable(client)
        self._errors = errors
        if metrics_path is not None and not metrics_path.startswith("/"):
            raise ConfigError(f"metrics_path={metrics_path!r}: need a path that begins with a slash, or None")
        self._metrics_path = metrics_path if metrics else None
        self._has_shared_loop = shared_loop
        self._has_request_ids = request_ids
        self._has_log_lines = log_lines
        self._has_metrics = metrics
        self._has_json_problems = json_problems
        self._has_rollback = rollback
        self._has_graceful_stop = graceful_stop
        self._refuses_stale_requests = refuse_stale_requests
        self._parts: WeakKeyDictionary[Flask, _Part] = WeakKeyDictionary()
        self._last_part: _Part | None = None
        self._apps = 0
        self._are_apps_alike = True
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, *, settings: Settings | None = None) -> None:
        """Brings the client and the features to an application; opens no connection.

        Args:
            settings: None reads `app.config`, then the process environment, then the `.env` of the working directory,
                and changes none of them.

        Raises:
            ConfigError: a setting is wrong, or eventlet has patched this process.
            TypeError: `app` is no Flask application.
        """
        if not isinstance(app, Flask):
            raise TypeError(
                f"DeepSeek got a {type(app).__name__} as the application: need a Flask object, "
                "and the client by its name, as in DeepSeek(app, client=MyClient())"
            )
        refuse_eventlet()  # which may have come after the import of this package
        settings = settings or _settings_of(app)
        if not self._has_rollback:
            settings = replace(settings, use_async=True)
        is_first_time = app not in self._parts
        self._apps += is_first_time
        if is_first_time and self._last_part is not None and self._last_part.settings != settings:
            self._are_apps_alike = False
        self._last_part = self._parts[app] = part = _Part(settings, self._client_under(settings))
        # A second DeepSeek of one application is a second client and nothing more.
        if app.extensions.setdefault(_NAME, self) is self and is_first_time:
            self._bring_features(app, part)

    @property
    def client(self) -> AsyncFacade:
        """The client of the current application; outside of one, that of the last one, if all have the same settings.

        With `client=asyncify(...)` it is that, under the application's settings.

        Raises:
            RuntimeError: it is not clear which application is meant, or `init_app` was not called for it.
        """
        client: AsyncFacade = self._part().client
        return client

    @property
    def settings(self) -> Settings:
        """The settings of the current application, found as `client` is."""
        return self._part().settings

    def wait(self, awaitable: Awaitable[_T]) -> _T:
        """Blocks for what `llm.client.x_async(...)`, or any coroutine, gives: for plain views, jobs and commands.

        The coroutine runs on the process's event loop, in the rollback in this thread without one. It sees the
        calling thread's contextvars; what it sets comes back.

        Raises:
            RuntimeError: this thread runs an event loop, which must not be blocked: await the call there.

        Threads: any that runs no event loop; blocks until the call has ended.
        """
        coroutine = _coroutine_of(awaitable)
        if asyncio._get_running_loop() is not None:
            coroutine.close()
            raise RuntimeError("DeepSeek.wait blocks, and this thread runs an event loop: await it instead")
        if self._obeys_rollback():
            return cast("_T", rollback.run_in_this_thread(coroutine))
        return cast("_T", run_on_shared_loop(coroutine))

    def stream(self, call: PathCall) -> BlockingStream:
        """The chunks of a call, for a plain view's answer: `Response(sse(llm.stream(...)), mimetype=...)`.

        One worker runs the client's stream from its beginning to its end, at most 32 chunks ahead. `close`, which the
        server calls when its client has gone, ends the call. In the rollback the chunks are made in this thread.

        Args:
            call: one by its path, such as `llm.client.chat.completions.create(..., stream=True)` with
                `client=asyncify(...)`, or `asyncify(llm.client).answers(...)` for any method of another client.

        Raises:
            DeepSeekError: what prevents the first chunk; a later failure is raised by the iterator, after the chunks
                that came before it. What the client itself raises stays as it is.
            RuntimeError: this thread runs an event loop, which must not be blocked.
            TypeError: that is no call, or one that gives no stream.

        Threads: any that runs no event loop; blocks until the first chunk is there.
        """
        return streaming.stream(call)

    def _part(self) -> _Part:
        part = self._part_or_none()
        if part is not None:
            return part
        if has_app_context():
            raise RuntimeError(f"DeepSeek.init_app was not called for the application {current_app.name!r}")
        if not self._apps:
            raise RuntimeError(
                "DeepSeek.init_app was not called: import the module that makes the application"
            )
        raise RuntimeError(
            f"{self._apps} applications with different settings use this DeepSeek: "
            "need an application context to tell which"
        )

    def _part_or_none(self) -> _Part | None:
        if has_app_context():
            return self._parts.get(current_app._get_current_object())  # type: ignore[attr-defined]
        # Tests make one application after the other, which their threads and jobs cannot tell apart.
        return self._last_part if self._are_apps_alike else None

    def _obeys_rollback(self) -> bool:
        part = self._part_or_none()
        return part is not None and not part.settings.use_async

    def _client_under(self, settings: Settings) -> Any:
        client = self._wrapped
        if client is None:
            return AsyncDeepSeekClient(settings=settings, errors=self._errors)
        if is_asyncified(client):
            return with_settings(client, settings)
        if isinstance(client, AsyncFacade):
            return client
        if inspect.isroutine(client) or isinstance(client, functools.partial):
            return asyncify(client, settings=settings)
        if has_method(client, "chat") or has_method(client, "parse"):
            return AsyncDeepSeekClient(client=client, settings=settings, errors=self._errors)
        return AsyncFacade(client, settings=settings)

    def _bring_features(self, app: Flask, part: _Part) -> None:
        if self._has_request_ids:
            envelope.give_ids(app)
        if self._has_log_lines:
            log_lines.install(part.settings, *_secrets_of(self._wrapped))
        if self._has_metrics:
            metrics.install()
            console_calls.init_app(app)
            envelope.count_requests(app)
        if self._metrics_path is not None:
            MetricsPage(self._metrics_path).init_app(app)
        if self._has_json_problems:
            problems.init_app(app)
        if self._has_shared_loop and _may_take_views_of(app):
            if part.settings.use_async:
                SharedLoop(app)
            else:
                app.async_to_sync = rollback.async_to_sync  # type: ignore[method-assign]
        self._bring_what_a_server_needs(app, part)

    def _bring_what_a_server_needs(self, app: Flask, part: _Part) -> None:
        arrival.mark_requests(app)
        if self._has_rollback:
            sources = Sources(app)
            testimony.testify(
                is_async=part.settings.use_async,
                engine=part.settings.engine,
                directory=sources.get(testimony.DIRECTORY_VARIABLE, ""),
                config=sources.in_config(),
            )
            request_started.connect(_testify_again_if_lost, app)
        if self._refuses_stale_requests and part.settings.use_async:
            arrival.init_app(app, part.settings.deadline_s)
        if self._has_graceful_stop:
            leaving.install()
            gunicorn_leaving.install()
            first_request.init_app(app)


def _settings_of(app: Flask) -> Settings:
    sources = Sources(app)
    settings = Settings.from_env(sources)
    for name, meant in sources.misspelt():
        _logger.warning("%s in app.config is no setting and does nothing: %s may be meant", name, meant)
    return settings


def _wrappable(client: Any) -> Any:
    """The client, unless it is a class whose methods all need an object.

    Raises:
        TypeError: it is.
    """
    if isinstance(client, type):
        public = [
            value for name, value in vars(client).items() if not name.startswith("_") and callable(value)
        ]
        if public and all(_needs_object(method) for method in public):
            name = client.__name__
            raise TypeError(
                f"DeepSeek got the class {name} as client: need an object of it, as in client={name}(), "
                f"or client=per_thread({name}) for one in each thread"
            )
    return client


def _needs_object(method: Any) -> bool:
    # A function of a class that has no `self` is called by the class.
    return inspect.isfunction(method) and method.__code__.co_varnames[:1] == ("self",)


def _testify_again_if_lost(_: Flask, **__: Any) -> None:
    testimony.restore()


def _may_take_views_of(app: Flask) -> bool:
    """Whether nobody but Flask, or a SharedLoop of ours, runs the application's async views yet."""
    own = vars(app).get("async_to_sync")
    if own is not None:
        return isinstance(getattr(own, "__self__", None), SharedLoop)
    return type(app).async_to_sync is Flask.async_to_sync


def _secrets_of(client: Any) -> list[str]:
    if isinstance(client, ClientPath):
        client = client_of(client)
    key = None if is_per_thread(client) else getattr(client, "api_key", None)
    return [key] if isinstance(key, str) else []


def _coroutine_of(awaitable: object) -> Coroutine[Any, Any, Any]:
    if inspect.iscoroutine(awaitable):
        return awaitable
    if not isinstance(awaitable, Awaitable):
        kind = type(awaitable).__name__
        raise TypeError(
            f"DeepSeek.wait got a {kind}: need what an async method gives, such as chat_async(...), "
            "or a call by its path with client=asyncify(...)"
        )
    return _await(awaitable)


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
