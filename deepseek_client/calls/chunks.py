"""What a client's method gave: a plain result, or a stream whose every chunk may block the thread that asks for it."""

from __future__ import annotations

import io
import sys
from collections.abc import Generator, Iterator
from types import CoroutineType
from typing import Any

__all__ = ["chunks_of", "is_stream", "plain"]


def is_stream(result: Any) -> bool:
    """Whether the result gives chunks that may block: it has `__next__`, and is neither a file nor a test's mock."""
    if not hasattr(type(result), "__next__") or isinstance(result, io.IOBase):
        return False
    mock = sys.modules.get("unittest.mock")  # whose MagicMock has every method
    return mock is None or not isinstance(result, mock.NonCallableMock)


def plain(result: Any, method: str) -> Any:
    """The result of a call that is awaited.

    Raises:
        TypeError: it is a stream, which would block the event loop at each chunk, or a coroutine, which is nobody's
            blocking call; it is closed.

    Threads: the one that has made the result.
    """
    if isinstance(result, CoroutineType):
        result.close()
        raise TypeError(
            f"{method} is async already: await it as it is, for only blocking clients are wrapped"
        )
    if not is_stream(result):
        return result
    _close(result)
    raise TypeError(
        f"{method} gave a stream ({type(result).__name__}), which cannot be awaited: write `async for chunk in "
        f"asyncify(client).{method}(...)`, without `await`, or `llm.stream(...)` in a plain Flask view"
    )


def chunks_of(result: Any, method: str) -> Generator[Any, None, None]:
    """Yields the chunks of a stream, or of what a context manager gives for the time in which it is entered.

    It is closed at the end, and when this generator is closed.

    Raises:
        TypeError: the result is no stream.

    Threads: the one that has made the result.
    """
    if is_stream(result):
        try:
            yield from result
        finally:
            _close(result)
    elif hasattr(type(result), "__enter__"):
        with result as entered:
            yield from _iterator(entered, method)
    else:
        try:
            yield from _iterator(result, method)
        finally:
            _close(result)


def _iterator(result: Any, method: str) -> Iterator[Any]:
    # A list, a dict and a pydantic model can be iterated, too: whoever gets one has forgotten `stream=True`.
    kind = type(result)
    if hasattr(kind, "__iter__") and (hasattr(kind, "__next__") or hasattr(kind, "close")):
        return iter(result)
    raise TypeError(
        f"{method} gave no stream but a {kind.__name__}: await it, ask the client for a stream, or read what it has in "
        "a generator function for asyncify"
    )


def _close(stream: Any) -> None:
    close = getattr(stream, "close", None)
    if callable(close):
        close()
