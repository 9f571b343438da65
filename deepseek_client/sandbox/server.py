"""The routes, and the life of the server that has them."""

from __future__ import annotations

import asyncio
import json
import math
import random
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from . import wire
from .chat_request import read_chat, read_chat_leniently
from .config import SandboxConfig
from .faults import BODY_FAULTS, WIRE_FAULTS, status_answer
from .refusals import Refusal, bad_key, documented_refusal, over_concurrency
from .replies import MODELS_BODY, PromptCache, chunked, completion, encoded
from .script import Entry, Script, ScriptError, read_script, script_language
from .traffic import Traffic
from .web_pages import refuse_web_page

__all__ = ["SandboxServer"]

_REQUEST_BYTES_LIMIT = 16 * 1024 * 1024
_BACKLOG = 4096
# Only a backstop: `stop` has cut every connection before aiohttp waits for its handlers.
_SHUTDOWN_S = 0.2
_WHAT_THIS_IS = b"sandbox: speaks the DeepSeek API with canned replies; this is not DeepSeek\n"


class SandboxServer:
    """The sandbox on one event loop.

    Raises:
        ValueError: the certificate or its key cannot be loaded; nothing was started.

    Threads: call every method in the thread of the loop that serves; `thread.RunningSandbox` is what other
        threads hold.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self.url = ""
        self.port = 0
        self._tls = _tls_context(config)
        self._traffic = Traffic()
        self._script = Script()
        self._cache = PromptCache()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen; `url` and `port` are known from then on.

        Raises:
            OSError: the address cannot be bound.
        """
        config = self.config
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=config.keep_alive_s,
            shutdown_timeout=_SHUTDOWN_S,
        )
        # "localhost" may be two addresses, and with port 0 they would get two different ports.
        host = "127.0.0.1" if config.host == "localhost" else config.host
        await runner.setup()
        try:
            await web.TCPSite(runner, host, config.port, ssl_context=self._tls, backlog=_BACKLOG).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = runner.addresses[0][1]
        self.url = f"{config.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def stop(self) -> None:
        """Cut every connection, hanging calls too, and stop listening; a second call does nothing."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in tuple(runner.sites):
            await site.stop()
        if runner.server is not None:
            for connection in tuple(runner.server.connections):
                if connection.transport is not None:
                    # Not close(): that waits for unsent bytes, and over TLS for the other side's goodbye.
                    connection.transport.abort()
        await runner.cleanup()

    def stats(self) -> dict[str, Any]:
        """The body of ``GET /sandbox/stats``."""
        return self._traffic.snapshot(scripted=len(self._script))

    def script(self, body: object) -> None:
        """Queue scripted replies.

        Raises:
            ScriptError: nothing of the body was queued.
        """
        self._script.extend(read_script(body))

    def reset(self) -> None:
        """Zero the stats, forget the prompts that were seen and drop what is scripted."""
        self._traffic.reset()
        self._script.clear()
        self._cache.clear()

    def add_watcher(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` in the loop's thread after every change of the traffic."""
        self._traffic.watchers.append(watcher)

    def remove_watcher(self, watcher: Callable[[], None]) -> None:
        """Stop calling `watcher`."""
        self._traffic.watchers.remove(watcher)

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=_REQUEST_BYTES_LIMIT)
        for prefix in ("", "/v1"):
            app.router.add_post(f"{prefix}/chat/completions", self._complete)
            app.router.add_get(f"{prefix}/models", self._list_models)
        app.router.add_get("/", self._say_what_this_is)
        app.router.add_get("/sandbox/stats", _for_programs(self._show_stats))
        app.router.add_get("/sandbox/script", _for_programs(self._explain_script))
        app.router.add_post("/sandbox/script", _for_programs(self._queue_script))
        app.router.add_delete("/sandbox/script", _for_programs(self._clear_script))
        app.router.add_post("/sandbox/reset", _for_programs(self._reset))
        app.router.add_route("*", "/{path:.*}", self._refuse_path)
        return app

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        traffic = self._traffic
        traffic.arrived(request)
        try:
            body = await request.read()
            entry = self._script.next()
            traffic.body_read(request, body)
            if entry is None:
                return await self._reply(request, body, self._latency_s())
            return await self._reply_as_scripted(request, body, entry)
        except Refusal as refusal:
            return await wire.send(request, refusal.body, refusal.status)
        except web.HTTPRequestEntityTooLarge as exc:
            return await wire.send(request, Refusal(413, str(exc.text)).body, 413)
        except (
            ConnectionResetError
        ):  # the client left while something was written: its right, and no error of ours
            raise asyncio.CancelledError from None
        finally:
            traffic.departed()

    async def _reply(self, request: web.Request, body: bytes, wait_s: float) -> web.StreamResponse:
        config = self.config
        self._check_key(request)
        if self._traffic.in_flight > config.concurrency:
            raise over_concurrency(self._traffic.in_flight, config.concurrency)
        chat = read_chat(body)
        reply = completion(chat, self._cache)
        if chat.is_streamed:
            events = chunked(reply, has_usage=chat.has_usage)
            return await wire.send_stream(request, events, wait_s, config.blank_line_every_s)
        return await wire.send_after(request, encoded(reply), wait_s, config.blank_line_every_s)

    async def _reply_as_scripted(self, request: web.Request, body: bytes, entry: Entry) -> web.StreamResponse:
        wait_s = self._latency_s() if entry.latency_ms is None else entry.latency_ms / 1000
        if entry.fault == "ok":
            return await self._reply(request, body, wait_s)
        chat = read_chat_leniently(body)
        every_s = self.config.blank_line_every_s
        if entry.fault == "status":
            limit, status = self.config.concurrency, entry.parameters["status"]
            default = documented_refusal(status, model=chat.model, api_key=_bearer(request), limit=limit)
            answer = status_answer(entry.parameters, default.body)
        elif entry.fault in BODY_FAULTS:
            reply = completion(chat, self._cache)
            answer = BODY_FAULTS[entry.fault](reply, entry.parameters)
            if chat.is_streamed and reply.get("choices") and answer.body == encoded(reply):
                events = chunked(reply, has_usage=chat.has_usage)
                return await wire.send_stream(request, events, wait_s, every_s)
        else:
            reply = completion(chat, self._cache)
            sent = encoded(reply)
            if chat.is_streamed:
                sent = b"".join(chunked(reply, has_usage=chat.has_usage))
            await asyncio.sleep(wait_s)
            return await WIRE_FAULTS[entry.fault](request, sent, entry.parameters)
        return await wire.send_after(request, answer.body, wait_s, every_s, answer.status, answer.headers)

    def _latency_s(self) -> float:
        latency_s = self.config.latency_ms / 1000
        if self.config.latency_sigma > 0:
            latency_s *= math.exp(random.gauss(0.0, self.config.latency_sigma))
        return latency_s

    def _check_key(self, request: web.Request) -> None:
        api_key = _bearer(request)
        if not api_key or (self.config.api_key and api_key != self.config.api_key):
            raise bad_key(api_key)

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        try:
            self._check_key(request)
        except Refusal as refusal:
            return await wire.send(request, refusal.body, refusal.status)
        return await wire.send(request, MODELS_BODY)

    async def _say_what_this_is(self, request: web.Request) -> web.StreamResponse:
        return await wire.send(request, _WHAT_THIS_IS, 200, {"Content-Type": "text/plain; charset=utf-8"})

    async def _show_stats(self, request: web.Request) -> web.StreamResponse:
        return await wire.send(request, encoded(self.stats()))

    async def _explain_script(self, request: web.Request) -> web.StreamResponse:
        return await wire.send(request, encoded({"scripted": len(self._script), "faults": script_language()}))

    async def _queue_script(self, request: web.Request) -> web.StreamResponse:
        try:
            self.script(json.loads(await request.read()))
        except ScriptError as exc:
            return await wire.send(request, Refusal(400, str(exc)).body, 400)
        except (ValueError, RecursionError) as exc:
            return await wire.send(request, Refusal(400, f"body: need a JSON object: {exc}").body, 400)
        return await wire.send(request, encoded({"scripted": len(self._script)}))

    async def _clear_script(self, request: web.Request) -> web.StreamResponse:
        self._script.clear()
        return await wire.send(request, encoded({"scripted": 0}))

    async def _reset(self, request: web.Request) -> web.StreamResponse:
        self.reset()
        return await wire.send(request, encoded(self.stats()))

    async def _refuse_path(self, request: web.Request) -> web.StreamResponse:
        return await wire.send(request, Refusal(404, f"Not Found: {request.method} {request.path}").body, 404)


def _for_programs(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            refuse_web_page(request)
        except Refusal as refusal:
            return await wire.send(request, refusal.body, refusal.status)
        return await handler(request)

    return handle


def _bearer(request: web.Request) -> str:
    scheme, _, api_key = request.headers.get("Authorization", "").partition(" ")
    return api_key.strip() if scheme.lower() == "bearer" else ""


def _tls_context(config: SandboxConfig) -> ssl.SSLContext | None:
    if not config.certfile:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.certfile, config.keyfile or None)
    except OSError as exc:
        raise ValueError(
            f"certfile={config.certfile!r}, keyfile={config.keyfile!r}: cannot load: {exc}"
        ) from exc
    return context
