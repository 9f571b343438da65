"""A client's stream as a Flask answer."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from deepseek_client import DeepSeekError

from ..calls.streams import BlockingStream
from ..paths import PathCall, call_of
from ..wire.tcp import has_other_end_closed
from .arrival import served_socket
from .loop import start_on_shared_loop
from .problems import problem_of

__all__ = ["sse", "stream"]

_logger = logging.getLogger(__name__)

_BROKE_OFF = {"error": "The answer broke off.", "code": "unexpected"}


def stream(call: PathCall) -> BlockingStream:
    """The chunks of a call for the thread of a request; waits for the first one.

    Raises:
        RuntimeError: this thread runs an event loop, which must not be blocked.
        TypeError: that is no call.
    """
    if not isinstance(call, PathCall):
        raise TypeError(
            f"DeepSeek.stream got a {type(call).__name__}: need a call by its path, such as "
            "llm.client.chat.completions.create(...) with client=asyncify(...)"
        )
    if asyncio._get_running_loop() is not None:
        call.close()
        raise RuntimeError("DeepSeek.stream blocks, and this thread runs an event loop: use a plain view")
    return BlockingStream(*call_of(call), start_on_shared_loop, _departure())


def _departure() -> Callable[[], bool]:
    """Tells whether the browser of this request has closed its connection, where the server shows that to us.

    The server itself learns it when it sends the next chunk, which a silent model may not give for long.
    """
    return functools.partial(has_other_end_closed, served_socket())


def sse(chunks: Iterable[Any]) -> Iterator[str]:
    """The chunks as server-sent events, and `data: [DONE]` after the last one.

    A failure in the middle becomes an event `error` with what a failed call answers, and there is no `[DONE]`. The
    chunks are closed when this iterator is, which the server does when its client has gone.

    Args:
        chunks: what `DeepSeek.stream` gives, or an iterator over it. A text is sent as it is, a pydantic model as its
            JSON, and anything else as JSON.

    Threads: one thread takes all of them.
    """
    try:
        for chunk in chunks:
            yield _event(_text_of(chunk))
        yield _event("[DONE]")
    except DeepSeekError as exc:
        yield _error(problem_of(exc))
    except (
        Exception
    ):  # the edge to the client: the answer's status has gone out, and its text is not for callers
        _logger.exception("a stream broke off")
        yield _error(_BROKE_OFF)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()


def _text_of(chunk: Any) -> str:
    if isinstance(chunk, str):
        return chunk
    model_json = getattr(chunk, "model_dump_json", None)
    return str(model_json()) if model_json is not None else _json(chunk)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _error(problem: dict[str, Any]) -> str:
    return f"event: error\n{_event(_json(problem))}"


def _event(text: str) -> str:
    # A line break of any kind would end the field; clients join the lines of several data fields.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join(f"data: {line}\n" for line in lines) + "\n"
