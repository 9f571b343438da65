"""Remembers what a throw-away Session of `requests` makes of its arguments: a third of the CPU that a call takes.

`requests.post` makes a Session, asks it for the environment's settings, prepares the request, and forgets all of it.
Calls of one client differ in their body alone. So while an Exchange runs, what was prepared for the same method, URL
and headers is used again, under the same environment. A call with any other argument goes through a Session as ever,
and so do all calls while somebody has replaced a function of `requests` on the way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import requests
from requests import adapters, cookies, models, sessions, structures
from requests.sessions import Session

from . import environment
from .exchange import Exchange, current
from .originals import Original, Originals, home_of

__all__ = ["install"]

_models: Any = models
_super_len: Any = requests.utils.super_len
_KEPT = 100  # prepared requests; a client with more kinds of them than that starts again

# Everything that a Session does before its adapter is asked, and what a reply becomes.
_SESSION = "requests.sessions"
_MODELS = "requests.models"
_originals = Originals(
    [
        *(Original(sessions, name, _SESSION) for name in ("Session", "merge_setting", "merge_hooks")),
        *(Original(sessions, name, _MODELS) for name in ("Request", "PreparedRequest")),
        Original(sessions, "HTTPAdapter", "requests.adapters"),
        Original(sessions, "preferred_clock", "time"),
        Original(sessions, "default_headers", "requests.utils"),
        Original(requests.utils, "default_user_agent", "requests.utils"),
        Original(sessions, "default_hooks", "requests.hooks"),
        Original(sessions, "dispatch_hook", "requests.hooks"),
        Original(sessions, "get_environ_proxies", "requests.utils"),
        Original(sessions, "get_netrc_auth", "requests.utils"),
        *(
            Original(Session, name, _SESSION)
            for name in (
                *("__init__", "__enter__", "__exit__", "close", "request", "prepare_request"),
                *("merge_environment_settings", "send", "get_adapter", "mount"),
            )
        ),
        Original(models.Request, "__init__", _MODELS),
        *(
            Original(models.PreparedRequest, name, _MODELS)
            for name in (
                *(
                    "__init__",
                    "prepare",
                    "prepare_method",
                    "prepare_url",
                    "prepare_headers",
                    "prepare_cookies",
                ),
                *("prepare_body", "prepare_content_length", "prepare_auth", "prepare_hooks"),
            )
        ),
        *(
            Original(adapters.HTTPAdapter, name, "requests.adapters")
            for name in ("__init__", "init_poolmanager", "build_response", "add_headers", "request_url")
        ),
    ]
)


class _Template(NamedTuple):
    """What a Session has made of a method, a URL and headers.

    Attributes:
        headers: as CaseInsensitiveDict stores them.
        options: what the Session hands to the adapter besides the timeout.
    """

    method: Any
    url: Any
    headers: Any
    options: Any


def install(adapter_for: Callable[[Exchange, str], Any]) -> None:
    """Makes `requests.post` and its like ask here while an exchange runs; does nothing when they already do.

    Args:
        adapter_for: gives what sends a request of the exchange to a URL; None where only a Session knows.

    Threads: any, under the lock of the transport that calls it.
    """
    usual: Any = requests.api.request
    if home_of(usual) != requests.api.__name__:
        return  # ours already; or an instrumentation's, which is to see each call

    def request(method: str, url: Any, **options: Any) -> requests.Response:
        exchange = current()
        if exchange is not None and _originals.are_in_place():
            prepared = _prepared(method, url, **options)
            adapter = None if prepared is None else adapter_for(exchange, prepared[0].url)
            if prepared is not None and adapter is not None:
                return _send(adapter, *prepared, options.get("timeout"))
        response: requests.Response = usual(method, url, **options)
        return response

    ours: Any = functools.update_wrapper(request, usual)
    requests.api.request = ours
    if requests.request is usual:  # not a mock, which nobody must lose
        requests.request = ours


def _prepared(
    method: str, url: Any, json: Any = None, data: Any = None, headers: Any = None, timeout: Any = None,
    params: Any = None, **others: Any,
) -> tuple[Any, Any] | None:  # fmt: skip
    """The request and the adapter's options; None if an argument is not of the usual ones.

    Raises:
        what a Session does when it prepares the request.
    """
    memory = environment.remembered()
    if memory is None or others or params or type(url) is not str or type(method) is not str:
        return None
    fields = _fields(headers)
    if fields is None or (data and type(data) not in (str, bytes)):
        return None
    try:
        body = data or (None if json is None else _models.complexjson.dumps(json, allow_nan=False))
    except ValueError:  # which becomes one of the errors of `requests`
        return None
    if json is not None and not data and isinstance(body, str):
        body = body.encode()
    # JSON brings a header, and a body another one.
    key = (method, url, fields, bool(data), body is None)
    template = memory.get(key)
    if template is None:
        template = _template(method, url, headers, data, json)
        if len(memory) >= _KEPT:
            memory.clear()
        memory[key] = template
    return _request(template, body), template.options


def _fields(headers: Any) -> tuple[tuple[str, str], ...] | None:
    """The headers as a key; None if there is one that is no text."""
    if not headers:
        return ()
    if type(headers) is not dict:
        return None
    fields = tuple(headers.items())
    for name, value in fields:
        if type(name) is not str or type(value) is not str:
            return None
    return fields


def _template(method: str, url: str, headers: Any, data: Any, json: Any) -> _Template:
    with Session() as session:
        request: Any = session.prepare_request(
            models.Request(
                method=method.upper(), url=url, headers=headers, data=data or {}, json=json, params={}
            )
        )
        options = session.merge_environment_settings(request.url, {}, None, None, None)
    return _Template(request.method, request.url, request.headers._store, options)


def _request(template: _Template, body: Any) -> Any:
    request: Any = requests.PreparedRequest()
    request.method, request.url = template.method, template.url
    request.headers = structures.CaseInsensitiveDict()
    request.headers._store = template.headers.copy()
    request._cookies = cookies.RequestsCookieJar()
    if body is not None:
        request.body = body
        request.headers["Content-Length"] = str(_super_len(body))
    return request


def _send(adapter: Any, request: Any, options: Any, timeout: Any) -> requests.Response:
    """Sends it as a new Session would, which takes over where a reply leads elsewhere."""
    began = sessions.preferred_clock()
    response: requests.Response = adapter.send(request, timeout=timeout, **options)
    response.elapsed = timedelta(seconds=sessions.preferred_clock() - began)
    if not response.is_redirect:
        return response
    with Session() as session:
        cookies.extract_cookies_to_jar(session.cookies, request, response.raw)  # type: ignore[no-untyped-call]
        history = [response, *session.resolve_redirects(response, request, timeout=timeout, **options)]
    response = history.pop()
    response.history = history
    return response
