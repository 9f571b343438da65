"""Streams: one worker runs the client's iterator from its first chunk to its end, and somebody else reads the chunks.

What was made and not read lies in a buffer that both sides use without a lock: the worker sleeps when it is full, the
reader when it is empty, and each looks once more after it has said that it is about to sleep. A stream is one call, and
one attempt: nobody can take back the chunks that were read.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

from ..errors import DeadlineExceeded
from ..wire import waiting
from .call import Call
from .caller import Caller
from .chunks import chunks_of

__all__ = ["AsyncStream", "BlockingStream"]

# Chunks; a worker that is ahead by so many waits until half of them are read. More cost less CPU, but each worker holds
# the GIL for longer at a time, and with it the event loop.
_BUFFERED = 32
_AT_A_STRETCH = 16  # chunks that are read before the event loop may do something else
_LOOK_EVERY_S = 0.25  # at whoever waits, while there is nothing to give

_Start = Callable[[Coroutine[Any, Any, Any]], "Future[Any]"]
_End = asyncio.Task[Any] | Future[Any]  # of the whole call


class _Buffer:
    """The chunks that were made and not read.

    Args:
        wake: lets the reader look, if it waits; called in any thread.

    Threads: one thread fills it, and one reads.
    """

    def __init__(self, call: Call, wake: Callable[[], None]) -> None:
        self._call = call
        self._wake = wake
        self._room = threading.Event()
        self._is_full = False  # the worker waits
        self._is_closed = False  # nobody reads any more, or the call's time is over
        self.is_awaited = False  # the reader waits
        self.chunks: deque[Any] = deque()
        call.take, call.is_stream = self.fill, True

    def fill(self, result: Any) -> None:
        """Takes every chunk of what the client's method returned, in the thread that ran it."""
        chunks, call, add = self.chunks, self._call, self.chunks.append
        source = chunks_of(result, call.method)
        try:
            for chunk in source:
                if self._is_closed:
                    return
                call.note_chunk()
                add(chunk)
                if self.is_awaited:
                    self.is_awaited = False
                    self._wake()
                if len(chunks) >= _BUFFERED:
                    self._wait_for_room()
        finally:
            source.close()  # here: the garbage collection would close it in any thread

    def take(self) -> Any:
        """The next chunk; there must be one."""
        chunk = self.chunks.popleft()
        if self._is_full and len(self.chunks) <= _BUFFERED // 2:
            self._is_full = False
            self._room.set()
        return chunk

    def close(self, _: _End | None = None) -> None:
        """Lets the worker end at its next chunk, and the reader look."""
        self._is_closed = True
        self._room.set()
        self._wake()

    def _wait_for_room(self) -> None:
        self._room.clear()
        self._is_full = True
        if len(self.chunks) >= _BUFFERED and not self._is_closed:
            left_s = self._call.deadline - time.monotonic()
            if not waiting.for_event(
                self._room, max(0.0, left_s)
            ):  # on an event loop the reader is another task of it
                raise DeadlineExceeded("The call's time is over.")


class _InThisThread(Iterator[Any]):
    """The rollback: each chunk is made in the thread that takes it, in one context."""

    def __init__(self, caller: Caller, call: Call) -> None:
        self._context = contextvars.copy_context()
        self._chunks = caller.chunks_here(call)

    def __next__(self) -> Any:
        return self._context.run(next, self._chunks)

    def close(self) -> None:
        self._context.run(self._chunks.close)

    def __del__(self) -> None:
        self.close()  # in the context, which the generator's own end would not be


class AsyncStream(AsyncIterator[Any]):
    """The chunks of a call, for `async for`. The call begins when the first one is asked for.

    An end before the last chunk ends the call, and its worker and its socket are free in a moment: `aclose()`, a
    cancelled reader, and an object that nobody holds any more, as after `break`.

    Raises:
        DeepSeekError: the deadline, which is that of the whole stream, or what the pool raises; after the chunks that
            came before it.
        TypeError: the method gave no stream.

    Threads: that of one event loop.
    """

    _task: asyncio.Task[Any] | None = None
    _here: _InThisThread | None = None
    _buffer: _Buffer
    _sleeper: _Sleeper
    _has_begun = False
    _stretch = 0

    def __init__(self, caller: Caller, call: Call) -> None:
        self._caller = caller
        self._call = call

    def begin(self) -> None:
        """Begins the call, if it has not begun."""
        if self._has_begun:
            return
        if self._caller.settings.use_async:
            loop = asyncio.get_running_loop()
            self._sleeper = _Sleeper(loop)
            self._buffer = _Buffer(self._call, self._sleeper.wake)
            self._task = loop.create_task(self._caller.run(self._call))
            self._task.add_done_callback(functools.partial(_end, self._buffer))
        else:
            self._here = _InThisThread(self._caller, self._call)
        self._has_begun = True

    async def __anext__(self) -> Any:
        if not self._has_begun:
            self.begin()
        if self._here is not None:
            for chunk in self._here:
                return chunk
            raise StopAsyncIteration
        while self._task is not None:
            if self._buffer.chunks:
                self._stretch += 1
                if self._stretch % _AT_A_STRETCH:
                    return self._buffer.take()
                await self._pause(asyncio.sleep(0))
            elif self._task.done():
                raise self._outcome()
            else:
                await self._pause(self._sleeper.sleep(self._buffer, self._task))
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the call, if it runs. Idempotent."""
        self._has_begun = True
        if self._here is not None:
            self._here.close()
        task, self._task = self._task, None
        if task is not None and not task.done():
            _leave(self._buffer, task)
            await asyncio.wait([task])

    async def __aenter__(self) -> AsyncStream:
        self.begin()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(
            f"the stream of {self._call.method} is read by `async for` and has no {name}: what the client's own stream "
            "has besides, use in a generator function for asyncify"
        )

    def __del__(self) -> None:
        if self._task is not None and not self._task.done():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and has cancelled the task
                self._task.get_loop().call_soon_threadsafe(_leave, self._buffer, self._task)

    def _outcome(self) -> BaseException:
        # Kept by nobody: its traceback will hold the frame that raises it, and that frame the prompt.
        task, self._task = self._task, None
        assert task is not None
        error = task.exception()
        if isinstance(error, StopAsyncIteration):  # of the client's own, and no end of its stream
            return RuntimeError("the call raised StopAsyncIteration")
        return error or StopAsyncIteration()

    async def _pause(self, wait: Coroutine[Any, Any, None]) -> None:
        try:
            await wait
        except BaseException:  # the reader is cancelled
            task, self._task = self._task, None
            if task is not None:
                _leave(self._buffer, task)
            raise


class _Sleeper:
    """Where a reader on an event loop sleeps."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None

    def sleep(self, buffer: _Buffer, task: asyncio.Task[Any]) -> Coroutine[Any, Any, None]:
        """Gives the wait for a chunk, or for the end of the task; it may also come back without either.

        Raises:
            RuntimeError: another reader waits already, whose stream goes on.
        """
        if self._waiter is not None:
            raise RuntimeError("two tasks read one stream at once")
        return self._sleep(buffer, task)

    async def _sleep(self, buffer: _Buffer, task: asyncio.Task[Any]) -> None:
        self._waiter = self._loop.create_future()
        buffer.is_awaited = True
        try:
            if not buffer.chunks and not task.done():  # only now: from the line above on the worker wakes us
                await self._waiter
        finally:
            self._waiter = None
            buffer.is_awaited = False

    def wake(self) -> None:
        """Wakes the reader, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads
            self._loop.call_soon_threadsafe(self._wake_here)

    def _wake_here(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class BlockingStream(Iterator[Any]):
    """The chunks of a call for a thread, which waits for each. The call begins at once.

    Args:
        start: runs a coroutine on an event loop of another thread, with the calling thread's contextvars.
        has_left: whether nobody waits for the chunks any more; asked while there is none, and then the stream ends.

    Raises:
        as AsyncStream. What fails before the first chunk is raised here, where a caller can still say so.

    Threads: one thread reads; any may close.
    """

    _future: Future[Any] | None = None
    _here: _InThisThread | None = None

    def __init__(
        self, caller: Caller, call: Call, start: _Start, has_left: Callable[[], bool] = lambda: False
    ) -> None:
        self._has_left = has_left
        self._woken = threading.Event()
        self._first: list[Any] = []
        if caller.settings.use_async:
            self._buffer = _Buffer(call, self._woken.set)
            self._future = start(caller.run(call))
            self._future.add_done_callback(self._buffer.close)
        else:
            self._here = _InThisThread(caller, call)
        self._first.extend(chunk for chunk in [next(self, _NOTHING)] if chunk is not _NOTHING)

    def __next__(self) -> Any:
        if self._first:
            return self._first.pop()
        if self._here is not None:
            return next(self._here)
        while (future := self._future) is not None:
            is_over = future.done()  # asked first: whatever it made lies in the buffer by then
            if self._buffer.chunks:
                return self._buffer.take()
            if is_over:
                self._future = None
                try:
                    raise future.exception() or StopIteration
                finally:
                    del future  # whose error's traceback holds this frame, and that frame the prompt
            self._sleep(future)
        raise StopIteration

    def close(self) -> None:
        """Ends the call, if it runs; waits for nothing. Idempotent. A WSGI server calls it when its client has gone."""
        self._first.clear()
        if self._here is not None:
            self._here.close()
        future, self._future = self._future, None
        if future is not None:
            self._buffer.close()
            future.cancel()

    def __del__(self) -> None:
        if self._future is not None:
            self.close()

    def _sleep(self, future: Future[Any]) -> None:
        self._woken.clear()
        self._buffer.is_awaited = True
        if (
            not self._buffer.chunks and not future.done()
        ):  # only now: from the line above on the worker wakes us
            while not self._woken.wait(_LOOK_EVERY_S):
                if self._has_left():
                    self.close()
                    break
        self._buffer.is_awaited = False


_NOTHING = object()


def _end(buffer: _Buffer, task: asyncio.Task[Any]) -> None:
    buffer.close()
    if not task.cancelled():
        task.exception()  # or asyncio warns of a failure that a reader has left behind


def _leave(buffer: _Buffer, task: asyncio.Task[Any]) -> None:
    """Nobody reads any more."""
    buffer.close()
    task.cancel()
