"""What hurts between the pool and the API: key, model, address, limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests.utils

from deepseek_client import Settings
from deepseek_client.models import RETIRED
from webapp.routes.probes import is_loopback

from .finding import Finding
from .situation import Situation

__all__ = ["examine_upstream"]

# Source: the vendor's documentation, late 2026. Requests in flight per account, over all of its keys.
_IN_FLIGHT = {"deepseek-flash": 2500, "deepseek-v4-flash": 2500, "deepseek-v4-pro": 500}
_HOST = "api.deepseek.com"
_LEGACY_MODEL = "deepseek-chat"
_LEGACY_READ_TIMEOUT_S = 10
_LEGACY_MAX_TOKENS = 200


def examine_upstream(situation: Situation) -> Iterator[Finding]:
    """The findings of this module; asks nothing of the network."""
    yield from _key(situation)
    yield from _model(situation)
    yield from _account_limit(situation)
    yield from _deadline(situation)
    if situation.settings.api_key:  # without one the sandbox answers, whatever the address
        yield from _address(situation)
        yield from _way(situation)


def _key(situation: Situation) -> Iterator[Finding]:
    settings = situation.settings
    if not settings.api_key:
        yield Finding(
            "hint",
            "no_key",
            "DEEPSEEK_API_KEY is blank.",
            "bin/serve answers from the local sandbox, gunicorn alone with 500 (not_configured).",
            "Set it in .env to talk to DeepSeek.",
        )
    if settings.api_key and settings.api_key == settings.web_api_token:
        yield Finding(
            "warning",
            "token_is_key",
            "WEB_API_TOKEN is the same as DEEPSEEK_API_KEY.",
            "Every caller then knows the key of your account.",
            "Make up another token.",
        )
    for name in ("DEEPSEEK_API_KEY", "WEB_API_TOKEN", "DEEPSEEK_MODEL"):
        value = situation.get(name)
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            yield Finding(
                "warning",
                "quoted",
                f"{name} begins and ends with a quotation mark.",
                "The marks are sent too: `docker --env-file` and systemd keep them where a shell takes them away.",
                "Set it without them.",
            )
    if situation.get("DEEPSEEK_VERBOSE") == "1":
        yield Finding(
            "hint",
            "verbose",
            "DEEPSEEK_VERBOSE=1 logs prompts and replies.",
            "What users write may be personal.",
            "Set it back to 0 when you have seen enough.",
        )


def _model(situation: Situation) -> Iterator[Finding]:
    settings = situation.settings
    model = settings.model or _LEGACY_MODEL
    if not _is_deepseek(settings):
        return
    if model in RETIRED and not settings.transport:
        yield Finding(
            "error",
            "retired_model",
            f"DEEPSEEK_TRANSPORT=0 sends the retired model {model} as it is.",
            "The API refuses it: every call comes back blank.",
            "Set DEEPSEEK_TRANSPORT=1, which sends its successor.",
        )
        return
    if settings.model in RETIRED:
        yield Finding(
            "hint",
            "retired_model",
            f"DEEPSEEK_MODEL={model} is retired.",
            f"It goes out as deepseek-flash with thinking {RETIRED[model]}.",
            f"Leave DEEPSEEK_MODEL blank, which means {_LEGACY_MODEL}.",
        )
    if model in _IN_FLIGHT or RETIRED.get(model) == "enabled":
        yield Finding(
            "warning",
            "thinking_model",
            f"{model} thinks before it answers, and the client allows {_LEGACY_MAX_TOKENS} tokens for both.",
            "Thinking usually uses them up: the reply is blank and the call fails with bad_reply.",
            "Leave DEEPSEEK_MODEL blank: deepseek-flash without thinking.",
        )
    elif model not in RETIRED:
        yield Finding(
            "hint",
            "unknown_model",
            f"DEEPSEEK_MODEL={model} is not among the models that this release knows.",
            "If the API does not know it either, every call fails with upstream_rejected.",
            f"Check the name ({', '.join(_IN_FLIGHT)}), or leave it blank.",
        )


def _is_deepseek(settings: Settings) -> bool:
    """Whether DeepSeek answers, or the sandbox, which is as strict; another service has models of its own."""
    host = urlsplit(settings.base_url).hostname or ""
    return not settings.api_key or host == _HOST or is_loopback(host)


def _account_limit(situation: Situation) -> Iterator[Finding]:
    settings, server = situation.settings, situation.server
    if urlsplit(settings.base_url).hostname != _HOST:
        return
    limit = _IN_FLIGHT.get(settings.model, _IN_FLIGHT["deepseek-flash"])
    each = settings.max_workers if settings.use_async else server.threads
    calls = situation.hosts * server.workers * each
    if calls > limit:
        name = "LLM_MAX_WORKERS" if settings.use_async else "WEB_THREADS"
        fitting = limit // (situation.hosts * server.workers)
        yield Finding(
            "warning",
            "account_limit",
            f"{situation.hosts} (hosts) x {server.workers} (WEB_CONCURRENCY) x {each} ({name}) = {calls} calls in "
            f"flight; an account may have {limit}.",
            "The API refuses the rest with 429 (rate_limited), also for other users of the account.",
            f"Lower {name} to {fitting}, or WEB_CONCURRENCY." if fitting else "Lower WEB_CONCURRENCY.",
        )


def _deadline(situation: Situation) -> Iterator[Finding]:
    settings = situation.settings
    pause_s, deadline_s = settings.read_timeout_s, settings.deadline_s
    if not settings.transport:
        yield Finding(
            "hint",
            "no_transport",
            "DEEPSEEK_TRANSPORT=0: nothing is installed below the legacy client.",
            "A running call cannot be ended, so a slow one keeps its thread beyond the deadline; failures come back as "
            "blank text, and LLM_READ_TIMEOUT_S does nothing.",
            "Set it back to 1 once what it was set for is over.",
        )
    elif pause_s is not None and pause_s >= deadline_s:
        yield Finding(
            "hint",
            "read_timeout",
            f"LLM_READ_TIMEOUT_S={pause_s:g} is not below LLM_DEADLINE_S={deadline_s:g}.",
            "The deadline always comes first: the setting does nothing but switch the client's own timeout off.",
            "Lower it, or leave it if that is what you want.",
        )
    elif pause_s is None and deadline_s > Settings.deadline_s:
        yield Finding(
            "hint",
            "read_timeout",
            f"LLM_DEADLINE_S={deadline_s:g}, but the client gives up when a reply pauses for "
            f"{_LEGACY_READ_TIMEOUT_S} s.",
            "An API that sends nothing while it thinks ends calls as connection_failed long before the deadline.",
            "Set LLM_READ_TIMEOUT_S to the pause that you accept.",
        )


def _address(situation: Situation) -> Iterator[Finding]:
    url = situation.settings.base_url
    if urlsplit(url).path.endswith("/completions"):
        yield Finding(
            "error",
            "base_url",
            f"DEEPSEEK_BASE_URL={url} ends with the path of a call.",
            "The client appends /chat/completions to it: the API answers 404.",
            "Leave that part out.",
        )
    if urlsplit(url).scheme == "http" and not is_loopback(urlsplit(url).hostname or ""):
        yield Finding(
            "warning",
            "key_in_clear",
            f"DEEPSEEK_BASE_URL={url} is not https.",
            "The key and all prompts cross the network in clear.",
            "Use https, unless the network between is yours alone.",
        )


def _way(situation: Situation) -> Iterator[Finding]:
    url = situation.settings.base_url
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) and (name := _proxy_for(situation, url)):
        yield Finding(
            "error",
            "loopback_proxy",
            f"{name} sends calls for {host} through a proxy.",
            "It looks for that address on its own machine: every call fails.",
            f"Add {host} to NO_PROXY.",
        )
    # What each call asks: ~/.netrc, ~/_netrc or the file that NETRC names.
    if requests.utils.get_netrc_auth(url):
        yield Finding(
            "error",
            "netrc",
            f"A netrc file has an entry for {host}.",
            "It replaces the key's header: the API refuses every call (authentication_failed).",
            "Remove the entry (also `default` is one), or set NETRC to an empty file.",
        )
    bundle = situation.get("REQUESTS_CA_BUNDLE") or situation.get("CURL_CA_BUNDLE")
    if parts.scheme == "https" and bundle and not os.path.exists(bundle):
        yield Finding(
            "error",
            "ca_bundle",
            f"REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names {bundle}, which does not exist.",
            "Every call fails before anything is sent.",
            "Correct the path, or unset the variable.",
        )


def _proxy_for(situation: Situation, url: str) -> str:
    """The variable that sends calls for this address through a proxy, "" if none does."""
    exempt = situation.get("no_proxy") or situation.get("NO_PROXY")
    for lower in (f"{urlsplit(url).scheme}_proxy", "all_proxy"):
        # A blank one in small letters switches the one in capitals off.
        name = lower if lower in {**situation.file, **situation.process} else lower.upper()
        if situation.get(name):
            return "" if requests.utils.should_bypass_proxies(url, no_proxy=exempt) else name
    return ""
