"""Part f: how many requests a second the sandbox answers to a client that does next to nothing.

No peer can have more; where one comes near, the table measures the sandbox.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

from .wire import KEY, body_of, is_answer, prompts, text_in

__all__ = ["measure"]


def measure(spec: dict[str, Any]) -> dict[str, float]:
    """Requests per second over `width` connections, which are made before the clock starts."""
    return asyncio.run(_measure(spec))


async def _measure(spec: dict[str, Any]) -> dict[str, float]:
    address = urlsplit(spec["url"])
    context = ssl.create_default_context(cafile=spec["bundle"])
    (prompt,) = prompts(1)
    request = _request(address.netloc, prompt)
    streams = [
        await asyncio.open_connection(address.hostname, address.port, ssl=context)
        for _ in range(spec["width"])
    ]
    for stream in streams[:1]:
        body = await _ask(*stream, request)
        if not is_answer(text_in(json.loads(body)), prompt):
            raise RuntimeError("the sandbox answered something else")
    turns = iter(range(spec["count"]))

    async def take_turns(stream: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        for _ in turns:
            await _ask(*stream, request)

    cpu_s, wall_s = time.process_time(), time.perf_counter()
    await asyncio.gather(*(take_turns(stream) for stream in streams))
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    for _, writer in streams:
        writer.transport.abort()
    return {"calls_per_s": spec["count"] / wall_s, "cpu_ms": cpu_s / spec["count"] * 1000}


def _request(host: str, prompt: str) -> bytes:
    body = json.dumps(body_of(prompt)).encode()
    head = f"POST /chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"the sandbox answered {head[:40]!r}")
    return await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r", 1)[0]))
