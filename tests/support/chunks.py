"""Streams of a test's own: ones that count, one that says who asks it, one that comes from a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import requests

from deepseek_client.calls.streams import AsyncStream


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


async def collect(chunks: AsyncStream, into: list[Any]) -> None:
    async for chunk in chunks:
        into.append(chunk)


class Watched:
    """A stream that says which thread asks it for chunks, and which closes it."""

    def __init__(self, chunks: int = 1_000_000_000) -> None:
        self.made = 0
        self.chunks = chunks
        self.threads: set[int] = set()
        self.closed_by: int | None = None
        self.closed = threading.Event()

    def __iter__(self) -> Watched:
        return self

    def __next__(self) -> int:
        self.threads.add(threading.get_ident())
        if self.made == self.chunks:
            raise StopIteration
        self.made += 1
        return self.made

    def close(self) -> None:
        self.closed_by = threading.get_ident()
        self.closed.set()


def lines_of(url: str) -> Iterator[bytes]:
    """A stream as people write it over `requests`: even its connection is made when the first chunk is asked for."""
    body = {"model": "deepseek-flash", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": "Bearer sk-test"}
    reply = requests.post(f"{url}/chat/completions", json=body, headers=headers, stream=True, timeout=60)
    for line in reply.iter_lines(chunk_size=16):
        if line:
            yield line
