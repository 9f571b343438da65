"""What the environment says of proxies and netrc, remembered for as long as it does not change.

`requests` asks for each call: it walks twice over all variables for proxies and looks for netrc files, a quarter of
what a call costs. The answers depend on the variables and on those files alone, so they are kept with a copy of the
variables and the state of the files, and asked for anew when either differs.
"""

from __future__ import annotations

import ctypes
import os
import urllib.request
from typing import Any

import requests.sessions

from .exchange import current

__all__ = ["install", "remembered"]

_UNKNOWN = object()
_KEPT = 100  # answers; a client with more addresses than that starts again


class _Memory:
    """The answers that hold in one state of the environment."""

    def __init__(self, variables: dict[Any, Any]) -> None:
        self.variables = variables
        self.proxies: dict[Any, dict[str, str]] = {}
        named = os.environ.get("NETRC")
        # The places where requests.utils.get_netrc_auth looks.
        places = [named] if named else ["~/.netrc", "~/_netrc"]
        self.netrc_paths = [os.fsencode(os.path.expanduser(place)) for place in places]
        self.netrc_state: list[Any] = []
        self.netrc: dict[Any, Any] = {}
        self.others: dict[Any, Any] = {}


_memory = _Memory({})


def install() -> None:
    """Makes `requests` ask here while an exchange runs; does nothing when it already does.

    Threads: any, under the lock of the transport that calls it.
    """
    sessions: Any = requests.sessions
    if _is_all_seen():
        sessions.get_environ_proxies = _remembering_proxies(sessions.get_environ_proxies)
    sessions.get_netrc_auth = _remembering_netrc(sessions.get_netrc_auth)


def remembered() -> dict[Any, Any] | None:
    """Returns what others keep for as long as the environment and the netrc files stay as they are.

    None where the system has settings of its own.

    Threads: any; a key is read and written in one step.
    """
    if not _is_all_seen():
        return None
    memory = _memory
    if memory.variables != getattr(os.environ, "_data", None):
        memory = _memory_of_now()
    _look_for_netrc(memory)
    return memory.others


def _is_all_seen() -> bool:
    # Elsewhere the system has settings of its own, whose changes cannot be seen from here.
    return urllib.request.getproxies is urllib.request.getproxies_environment


# These are asked for each request: what they need in the usual case stands in one function each.


def _remembering_proxies(ask: Any) -> Any:
    if hasattr(ask, "asks_memory"):
        return ask

    def get_environ_proxies(url: str, no_proxy: str | None = None) -> Any:
        if current() is None:
            return ask(url, no_proxy=no_proxy)
        memory = _memory
        if memory.variables != getattr(os.environ, "_data", None):
            memory = _memory_of_now()
        answer = memory.proxies.get((url, no_proxy))
        if answer is None:
            answer = _kept(memory.proxies, (url, no_proxy), ask(url, no_proxy=no_proxy))
        return answer.copy()  # the Session adds to it

    get_environ_proxies.asks_memory = True  # type: ignore[attr-defined]
    return get_environ_proxies


def _remembering_netrc(ask: Any) -> Any:
    if hasattr(ask, "asks_memory"):
        return ask

    def get_netrc_auth(url: str, raise_errors: bool = False) -> Any:
        if current() is None or raise_errors:
            return ask(url, raise_errors)
        memory = _memory
        if memory.variables != getattr(os.environ, "_data", None):
            memory = _memory_of_now()
        _look_for_netrc(memory)
        answer = memory.netrc.get(url, _UNKNOWN)
        return _kept(memory.netrc, url, ask(url)) if answer is _UNKNOWN else answer

    get_netrc_auth.asks_memory = True  # type: ignore[attr-defined]
    return get_netrc_auth


def _look_for_netrc(memory: _Memory) -> None:
    state = [None if _access(path, os.F_OK) else _state_of(path) for path in memory.netrc_paths]
    if memory.netrc_state != state:
        memory.netrc, memory.others, memory.netrc_state = {}, {}, state


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


def _kept(answers: dict[Any, Any], question: Any, answer: Any) -> Any:
    if len(answers) >= _KEPT:
        answers.clear()
    answers[question] = answer
    return answer


# access(2) without letting go of the GIL, which os.stat and os.access do: with a hundred threads queueing for it, two
# looks for files that are not there cost a seventh of all calls.
_access = ctypes.PyDLL(None).access


def _state_of(path: bytes) -> tuple[int, ...] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_mtime_ns, state.st_size, state.st_ino)
