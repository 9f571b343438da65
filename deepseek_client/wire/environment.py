"""What the environment says of proxies and netrc, remembered for as long as it does not change.

`requests` asks for each call: it walks twice over all variables for proxies and looks for netrc files, a quarter of
what a call costs. The answers depend on the variables and on those files alone, so they are kept with a copy of the
variables and the state of the files, and asked for anew when either differs.
"""

from __future__ import annotations

import ctypes
import os
import urllib.request
from collections.abc import Callable
from typing import Any

import requests.sessions

from .exchange import current

__all__ = ["install"]

_UNKNOWN = object()
_KEPT = 100  # answers; a client with more addresses than that starts again


class _Memory:
    """The answers that hold in one state of the environment."""

    def __init__(self, variables: dict[Any, Any]) -> None:
        self.variables = variables
        self.proxies: dict[Any, dict[str, str]] = {}
        named = os.environ.get("NETRC")
        # The places where requests.utils.get_netrc_auth looks.
        self.netrc_paths = (
            [os.path.expanduser(named)]
            if named
            else [os.path.expanduser(f"~/{name}") for name in (".netrc", "_netrc")]
        )
        self.netrc_state: list[Any] = []
        self.netrc: dict[Any, Any] = {}


_memory = _Memory({})


def install() -> None:
    """Makes `requests` ask here while an exchange runs; does nothing when it already does.

    Threads: any, under the lock of the transport that calls it.
    """
    sessions: Any = requests.sessions
    # Elsewhere the system has settings of its own, whose changes cannot be seen from here.
    if urllib.request.getproxies is urllib.request.getproxies_environment:
        sessions.get_environ_proxies = _remembering(sessions.get_environ_proxies, _proxies)
    sessions.get_netrc_auth = _remembering(sessions.get_netrc_auth, _netrc)


def _remembering(ask: Any, answer: Callable[..., Any]) -> Any:
    if hasattr(ask, "asks_memory"):
        return ask

    def remembering(url: str, *args: Any, **kwargs: Any) -> Any:
        if current() is None:
            return ask(url, *args, **kwargs)
        return answer(_memory_of_now(), ask, url, *args, **kwargs)

    remembering.asks_memory = True  # type: ignore[attr-defined]
    return remembering


def _memory_of_now() -> _Memory:
    global _memory
    # The dictionary below os.environ: comparing it decodes nothing and takes about a microsecond.
    variables = getattr(os.environ, "_data", None)
    if not isinstance(variables, dict):
        variables = dict(os.environ)
    memory = _memory
    if memory.variables != variables:
        memory = _memory = _Memory(dict(variables))
    return memory


def _proxies(
    memory: _Memory, ask: Callable[..., Any], url: str, no_proxy: str | None = None
) -> dict[str, str]:
    proxies: dict[str, str] = _kept(memory.proxies, (url, no_proxy), lambda: ask(url, no_proxy=no_proxy))
    return dict(proxies)


def _netrc(memory: _Memory, ask: Callable[..., Any], url: str) -> Any:
    state = [_state_of(path) for path in memory.netrc_paths]
    if memory.netrc_state != state:
        memory.netrc, memory.netrc_state = {}, state
    return _kept(memory.netrc, url, lambda: ask(url))


def _kept(answers: dict[Any, Any], question: Any, ask: Callable[[], Any]) -> Any:
    answer = answers.get(question, _UNKNOWN)
    if answer is _UNKNOWN:
        if len(answers) >= _KEPT:
            answers.clear()
        answer = answers[question] = ask()
    return answer


# access(2) without letting go of the GIL, which os.stat and os.access do: with a hundred threads queueing for it, two
# looks for files that are not there cost a seventh of all calls.
_access = ctypes.PyDLL(None).access


def _state_of(path: str) -> tuple[int, ...] | None:
    if _access(os.fsencode(path), os.F_OK) != 0:
        return None
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_mtime_ns, state.st_size, state.st_ino)
