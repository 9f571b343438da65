"""What hurts between the callers and the pool: gunicorn, its workers, and who may reach them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from deepseek_client import Settings
from webapp.routes.probes import is_loopback

from .finding import Finding
from .situation import Situation

__all__ = ["examine_serving"]

_PROXY_WAITS_S = 60  # nginx's proxy_read_timeout and a load balancer's idle timeout, by default
_CALL_S = 1.0  # an answer of a large model seldom takes less
_OTHER_FILES = 64  # of a worker process: listener, logs, metrics, requests


def examine_serving(situation: Situation) -> Iterator[Finding]:
    """The findings of this module."""
    yield from _public(situation)
    yield from _timeouts(situation)
    yield from _preload(situation)
    yield from _concurrency(situation)
    yield from _batch(situation)
    yield from _open_files(situation)


def _public(situation: Situation) -> Iterator[Finding]:
    public = [bind for bind in situation.server.bind if not _is_local(bind)]
    if public and not situation.settings.web_api_token:
        yield Finding(
            "warning",
            "public_without_token",
            f"{', '.join(public)} can be reached from other machines, and WEB_API_TOKEN is blank.",
            "Whoever reaches the port makes calls at your account's expense.",
            "Set WEB_API_TOKEN; or HOST=127.0.0.1, behind a proxy that asks who calls.",
        )


def _is_local(bind: str) -> bool:
    if bind.startswith(("unix:", "fd://")):
        return True
    return is_loopback(bind.rpartition(":")[0].strip("[]"))


def _timeouts(situation: Situation) -> Iterator[Finding]:
    server, deadline_s = situation.server, situation.settings.deadline_s
    if server.is_sync and 0 < server.timeout <= deadline_s:
        yield Finding(
            "warning",
            "worker_timeout",
            f"gunicorn's timeout of {server.timeout:g} s is not above LLM_DEADLINE_S={deadline_s:g}.",
            "It kills a sync worker in the middle of a slow call, whose caller gets no answer instead of a 504.",
            f"Take --timeout out of GUNICORN_CMD_ARGS, or make it {math.ceil(deadline_s) + 10}.",
        )
    if server.graceful_timeout < deadline_s:
        yield Finding(
            "warning",
            "graceful_timeout",
            f"gunicorn's graceful timeout of {server.graceful_timeout:g} s is below LLM_DEADLINE_S={deadline_s:g}.",
            "A reload or a stop cuts calls that are in flight, and what they cost is lost.",
            f"Take --graceful-timeout out of GUNICORN_CMD_ARGS, or make it {math.ceil(deadline_s) + 5}.",
        )
    if deadline_s >= _PROXY_WAITS_S:
        yield Finding(
            "hint",
            "proxy_timeout",
            f"LLM_DEADLINE_S={deadline_s:g} is as long as proxies usually wait, {_PROXY_WAITS_S} s.",
            "The proxy answers 504 first, and the call goes on for nobody.",
            "Let it wait longer (nginx: proxy_read_timeout), or lower LLM_DEADLINE_S.",
        )


def _preload(situation: Situation) -> Iterator[Finding]:
    if situation.server.preload_app:
        yield Finding(
            "warning",
            "preload",
            "gunicorn loads the application before it forks (--preload).",
            "SIGHUP then reads neither new code nor a new .env: bin/toggle-async cannot roll back.",
            "Take --preload out of GUNICORN_CMD_ARGS.",
        )


def _concurrency(situation: Situation) -> Iterator[Finding]:
    server, settings = situation.server, situation.settings
    if not settings.use_async:
        return
    if server.is_sync and settings.max_workers > Settings.max_workers:
        yield Finding(
            "hint",
            "one_at_a_time",
            f"LLM_MAX_WORKERS={settings.max_workers} on sync workers is of use to batches only.",
            "A sync worker serves one request at a time, so routes of one prompt have "
            f"{server.workers} calls in flight on this host, however many threads the pools have.",
            "Send several prompts to /api/llm/batch, hand them to a task queue, or set WEB_THREADS (gthread).",
        )
    if not server.is_sync and server.threads > settings.max_workers:
        yield Finding(
            "hint",
            "threads_over_workers",
            f"WEB_THREADS={server.threads} take requests, LLM_MAX_WORKERS={settings.max_workers} make calls.",
            f"Of each process's calls {settings.max_workers} run at a time, the rest wait in the queue.",
            f"Set LLM_MAX_WORKERS={server.threads} if that many calls shall run at once.",
        )


def _batch(situation: Situation) -> Iterator[Finding]:
    settings = situation.settings
    width = settings.max_workers if settings.use_async else 1
    call_s = settings.deadline_s / math.ceil(settings.batch_limit / width)
    if call_s < _CALL_S:
        yield Finding(
            "hint",
            "large_batch",
            f"A batch of LLM_BATCH_LIMIT={settings.batch_limit}, {width} at a time, leaves each call {call_s:.2g} s.",
            f"All of a batch share one LLM_DEADLINE_S={settings.deadline_s:g}; what is not done by then fails.",
            "Lower LLM_BATCH_LIMIT, or raise LLM_MAX_WORKERS or LLM_DEADLINE_S.",
        )


def _open_files(situation: Situation) -> Iterator[Finding]:
    settings, server = situation.settings, situation.server
    need = settings.max_workers + server.threads + _OTHER_FILES
    if 0 < situation.open_files < need:  # RLIM_INFINITY is negative
        yield Finding(
            "warning",
            "open_files",
            f"A worker process may need {need} open files and is allowed {situation.open_files}.",
            "Each call in flight has a connection; beyond the limit calls fail with connection_failed.",
            f"Raise the limit (ulimit -n, systemd: LimitNOFILE) to {need} or more, or lower LLM_MAX_WORKERS.",
        )
