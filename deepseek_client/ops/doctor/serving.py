"""What hurts between the callers and the pool: gunicorn, its workers, and who may reach them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...settings import Settings, is_loopback
from .finding import Finding, found
from .situation import Server, Situation

__all__ = ["examine_serving"]

_PROXY_WAITS_S = 60  # nginx's proxy_read_timeout and a load balancer's idle timeout, by default
_DOCKER_WAITS_S = 10  # `docker stop`, by default
_CALL_S = 1.0  # an answer of a large model seldom takes less
_OTHER_FILES = 64  # of a worker process: listener, logs, metrics, requests


def examine_serving(situation: Situation) -> Iterator[Finding]:
    """The findings of this module."""
    server, settings = situation.server, situation.settings
    if server:
        if situation.is_webapp:
            yield from _public(server, settings)
        yield from _timeouts(server, settings.deadline_s)
        yield from _surroundings(server, situation.is_container)
        if server.preload_app:
            yield found("preload")
        if settings.use_async:
            yield from _concurrency(server, settings)
        yield from _open_files(server, situation)
    elif not situation.refusals:
        yield found("no_server")
    if settings.deadline_s >= _PROXY_WAITS_S:
        yield found("proxy_timeout", deadline_s=settings.deadline_s, proxy_s=_PROXY_WAITS_S)
    if situation.is_webapp:
        yield from _batch(settings)


def _public(server: Server, settings: Settings) -> Iterator[Finding]:
    public = [bind for bind in server.bind if not _is_local(bind)]
    if public and not settings.web_api_token:
        yield found("public_without_token", binds=", ".join(public))


def _is_local(bind: str) -> bool:
    if bind.startswith(("unix:", "fd://")):
        return True
    return is_loopback(bind.rpartition(":")[0].strip("[]"))


def _timeouts(server: Server, deadline_s: float) -> Iterator[Finding]:
    if server.is_sync and 0 < server.timeout <= deadline_s:
        needed_s = math.ceil(deadline_s) + 10
        yield found("worker_timeout", timeout_s=server.timeout, deadline_s=deadline_s, needed_s=needed_s)
    if server.graceful_timeout < deadline_s:
        timeout_s, needed_s = server.graceful_timeout, math.ceil(deadline_s) + 5
        yield found("graceful_timeout", timeout_s=timeout_s, deadline_s=deadline_s, needed_s=needed_s)


def _surroundings(server: Server, is_container: bool) -> Iterator[Finding]:
    """What stops the server, or stands before it, with a patience of its own."""
    if is_container and server.graceful_timeout > _DOCKER_WAITS_S:
        needed_s = math.ceil(server.graceful_timeout) + 5
        yield found(
            "container_stop", timeout_s=server.graceful_timeout, waits_s=_DOCKER_WAITS_S, needed_s=needed_s
        )
    is_public = not all(map(_is_local, server.bind))
    if is_public and not server.is_sync and 0 < server.keepalive <= _PROXY_WAITS_S:
        needed_s = _PROXY_WAITS_S + 15
        yield found("keepalive", keepalive_s=server.keepalive, balancer_s=_PROXY_WAITS_S, needed_s=needed_s)


def _concurrency(server: Server, settings: Settings) -> Iterator[Finding]:
    workers = settings.max_workers
    if server.is_sync and workers > Settings.max_workers:
        yield found("one_at_a_time", workers=workers, processes=server.workers)
    if not server.is_sync and server.threads > workers:
        yield found("threads_over_workers", threads=server.threads, workers=workers)


def _batch(settings: Settings) -> Iterator[Finding]:
    prompts, deadline_s = settings.batch_limit, settings.deadline_s
    width = settings.max_workers if settings.use_async else 1
    call_s = deadline_s / math.ceil(prompts / width)
    if call_s < _CALL_S:
        yield found("large_batch", prompts=prompts, width=width, call_s=call_s, deadline_s=deadline_s)


def _open_files(server: Server, situation: Situation) -> Iterator[Finding]:
    need = situation.settings.max_workers + server.threads + _OTHER_FILES
    if 0 < situation.open_files < need:  # RLIM_INFINITY is negative
        yield found("open_files", need=need, allowed=situation.open_files)
