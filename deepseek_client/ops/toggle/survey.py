"""Asking every worker for its mode, through /api/llm/status and over as many connections as that takes."""

from __future__ import annotations

import json
import selectors
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple

__all__ = ["Survey", "ask"]

_PATH = "/api/llm/status"
_TICK_S = 0.1
_PATIENCE_S = 0.5
_TIMEOUT_S = 5.0
_AT_ONCE_LIMIT = 64
_OPEN_LIMIT = 512
_THIS_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Survey(NamedTuple):
    """What was answered.

    Attributes:
        modes: pid to whether that process makes calls asynchronously.
        trouble: the last thing that was not such an answer, "" if there was none.
    """

    modes: dict[int, bool]
    trouble: str


def ask(
    host: str,
    port: int,
    token: str,
    at_once: int,
    is_enough: Callable[[dict[int, bool]], bool],
    wait_s: float,
) -> Survey:
    """Asks until it is enough or the time is over. Which worker takes a connection is the kernel's choice.

    A sync worker serves one request at a time, so several questions at once reach several of them. Under load they wait
    in line with everybody else's requests: those that wait are kept, and more are sent after a while, for a worker that
    hangs may have taken them.

    Args:
        at_once: questions that are sent together, the more the more workers there are.
        is_enough: called with what is known, many times a second.
    """
    modes: dict[int, bool] = {}
    trouble = ""
    ends_at = time.monotonic() + wait_s
    next_at = 0.0
    with selectors.DefaultSelector() as waiting:
        try:
            while not is_enough(modes) and (now := time.monotonic()) < ends_at:
                if now >= next_at:
                    trouble = _send(waiting, host, port, token, at_once) or trouble
                    next_at = now + _PATIENCE_S
                for key, _ in waiting.select(_TICK_S):
                    waiting.unregister(key.fileobj)
                    trouble = _receive(key.data, modes) or trouble
                if not waiting.get_map():
                    next_at = min(next_at, now + _TICK_S)
        finally:
            for key in list(waiting.get_map().values()):
                key.data.close()
    return Survey(modes, trouble)


def _send(waiting: selectors.BaseSelector, host: str, port: int, token: str, at_once: int) -> str:
    """Sends questions; returns why it could not."""
    headers = {"Connection": "close", **({"Authorization": f"Bearer {token}"} if token else {})}
    for _ in range(min(at_once, _AT_ONCE_LIMIT, _OPEN_LIMIT - len(waiting.get_map()))):
        connection = HTTPConnection(_THIS_HOST.get(host, host), port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", _PATH, headers=headers)
        except TimeoutError:  # so many are waiting that the kernel takes no more for now
            connection.close()
            return ""
        except OSError as error:
            connection.close()
            return f"{host} port {port}: {error.strerror or error}"
        waiting.register(connection.sock, selectors.EVENT_READ, connection)
    return ""


def _receive(connection: HTTPConnection, modes: dict[int, bool]) -> str:
    """Adds an answer that has come; returns what else has come."""
    try:
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            why = ": WEB_API_TOKEN in .env is not the server's" if response.status == 401 else ""
            return f"{_PATH} answers {response.status}{why}"
        answer = json.loads(body)
        modes[int(answer["pid"])] = bool(answer["async_enabled"])
    except (OSError, HTTPException) as error:
        return f"{_PATH} answers nothing: {error or type(error).__name__}"
    except (KeyError, TypeError, ValueError):
        return f"{_PATH} answers something else than this application"
    finally:
        connection.close()
    return ""
