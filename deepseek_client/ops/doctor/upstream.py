"""What hurts between the pool and the API: key, model, address, limits."""

from __future__ import annotations

import ipaddress
import netrc
import os
from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed has no such name

from ...models import RETIRED
from ...settings import Settings, is_loopback
from .finding import Finding, found
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
    yield from _model(situation.settings)
    yield from _account_limit(situation)
    yield from _deadline(situation.settings)
    if situation.settings.engine == "loop":
        yield found("loop_engine/missing" if find_spec("greenlet") is None else "loop_engine")
    if situation.settings.api_key:  # without one the sandbox answers, whatever the address
        yield from _address(situation.settings.base_url)
        yield from _way(situation)


def _key(situation: Situation) -> Iterator[Finding]:
    settings = situation.settings
    if not settings.api_key:
        yield found("no_key" if situation.is_webapp else "no_key/library")
    if settings.api_key and settings.api_key == settings.web_api_token:
        yield found("token_is_key")
    for name in ("DEEPSEEK_API_KEY", "WEB_API_TOKEN", "DEEPSEEK_MODEL"):
        value = situation.get(name)
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            yield found("quoted", name=name)
    if situation.get("DEEPSEEK_VERBOSE") == "1":
        yield found("verbose")


def _model(settings: Settings) -> Iterator[Finding]:
    model = settings.model or _LEGACY_MODEL
    if not _is_deepseek(settings):
        return
    if model in RETIRED and not settings.transport:
        yield found("retired_model/refused", model=model)
        return
    if settings.model in RETIRED:
        yield found("retired_model", model=model, thinking=RETIRED[model])
    if model in _IN_FLIGHT or RETIRED.get(model) == "enabled":
        yield found("thinking_model", model=model, tokens=_LEGACY_MAX_TOKENS)
    elif model not in RETIRED:
        yield found("unknown_model", model=model, known=", ".join(_IN_FLIGHT))


def _is_deepseek(settings: Settings) -> bool:
    """Whether DeepSeek answers, or the sandbox, which is as strict; another service has models of its own."""
    host = urlsplit(settings.base_url).hostname or ""
    return not settings.api_key or host == _HOST or is_loopback(host)


def _account_limit(situation: Situation) -> Iterator[Finding]:
    settings, server, hosts = situation.settings, situation.server, situation.hosts
    if server is None or urlsplit(settings.base_url).hostname != _HOST:
        return
    limit = _IN_FLIGHT.get(settings.model, _IN_FLIGHT["deepseek-flash"])
    name = "LLM_MAX_WORKERS" if settings.use_async else "gunicorn's threads"
    each = settings.max_workers if settings.use_async else server.threads
    calls = hosts * server.workers * each
    if calls > limit and not 0 < settings.account_limit <= limit:
        fitting = max(1, limit // (hosts * server.workers))
        yield found(
            "account_limit",
            hosts=hosts,
            processes=server.workers,
            each=each,
            name=name,
            calls=calls,
            limit=limit,
            fitting=fitting,
        )


def _deadline(settings: Settings) -> Iterator[Finding]:
    pause_s, deadline_s = settings.read_timeout_s, settings.deadline_s
    if not settings.transport:
        yield found("no_transport")
    elif pause_s is not None and pause_s >= deadline_s:
        yield found("read_timeout/useless", pause_s=pause_s, deadline_s=deadline_s)
    elif pause_s is None and deadline_s > Settings.deadline_s:
        yield found("read_timeout/missing", pause_s=_LEGACY_READ_TIMEOUT_S, deadline_s=deadline_s)


def _address(url: str) -> Iterator[Finding]:
    if urlsplit(url).path.endswith("/completions"):
        yield found("base_url", url=url)
    if urlsplit(url).scheme == "http" and not is_loopback(urlsplit(url).hostname or ""):
        yield found("key_in_clear", url=url)


def _way(situation: Situation) -> Iterator[Finding]:
    parts = urlsplit(situation.settings.base_url)
    host = parts.hostname or ""
    if is_loopback(host) and (name := _proxy_for(situation, parts.scheme, host)):
        yield found("loopback_proxy", name=name, host=host)
    if _has_netrc_entry(situation, host):
        yield found("netrc", host=host)
    bundle = situation.get("REQUESTS_CA_BUNDLE") or situation.get("CURL_CA_BUNDLE")
    if parts.scheme == "https" and bundle and not os.path.exists(bundle):
        yield found("ca_bundle", bundle=bundle)


def _proxy_for(situation: Situation, scheme: str, host: str) -> str:
    """The variable that sends calls for this host through a proxy, "" if none does; by the rules of requests."""
    exempt = situation.get("no_proxy") or situation.get("NO_PROXY")
    for lower in (f"{scheme}_proxy", "all_proxy"):
        # A blank one in small letters switches the one in capitals off.
        name = lower if lower in {**situation.file, **situation.process} else lower.upper()
        if situation.get(name):
            return "" if _is_exempt(host, exempt) else name
    return ""


def _is_exempt(host: str, exempt: str) -> bool:
    if proxy_bypass_environment(host, {"no": exempt}):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in _networks(exempt))


def _networks(exempt: str) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for entry in exempt.split(","):
        try:
            yield ipaddress.ip_network(entry.strip(), strict=False)
        except ValueError:  # a name
            pass


def _has_netrc_entry(situation: Situation, host: str) -> bool:
    """Whether each call would find credentials in ~/.netrc, ~/_netrc or the file that NETRC names."""
    home = situation.get("HOME")
    names = [situation.get("NETRC")] if situation.get("NETRC") else [f"{home}/.netrc", f"{home}/_netrc"]
    path = next(filter(os.path.exists, map(os.path.expanduser, names)), "")
    try:
        return bool(path) and netrc.netrc(path).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):  # what nobody can read says nothing
        return False
