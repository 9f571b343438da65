"""How a reply goes out: in one piece, late, slowly, in part, or not at all."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn

from aiohttp import web

__all__ = [
    "EVENT_HEADERS",
    "JSON_HEADERS",
    "close",
    "drip",
    "hang",
    "reset",
    "send",
    "send_after",
    "send_half_then",
    "send_padded",
    "send_slowly",
    "send_stream",
    "send_then_close",
]

JSON_HEADERS: Mapping[str, str] = {"Content-Type": "application/json", "Server": "deepseek-sandbox"}
EVENT_HEADERS: Mapping[str, str] = {**JSON_HEADERS, "Content-Type": "text/event-stream; charset=utf-8"}
_LINGER_ZERO = struct.pack("ii", 1, 0)
_PADDING = b" " * 65536


async def send(
    request: web.Request, body: bytes, status: int = 200, headers: Mapping[str, str] = JSON_HEADERS
) -> web.StreamResponse:
    """Send a complete answer; when this returns, the system has all of it."""
    response = web.Response(body=body, status=status, headers=headers)
    await response.prepare(request)
    await response.write_eof()
    return response


async def send_after(
    request: web.Request,
    body: bytes,
    wait_s: float,
    blank_line_every_s: float,
    status: int = 200,
    headers: Mapping[str, str] = JSON_HEADERS,
) -> web.StreamResponse:
    """Send an answer after `wait_s`; a long wait for a 200 drips blank lines, as the busy API does."""
    if status != 200 or wait_s <= blank_line_every_s:
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        return await send(request, body, status, headers)
    response = await _begin(request, headers)
    while wait_s > blank_line_every_s:
        await asyncio.sleep(blank_line_every_s)
        await response.write(b"\n")
        wait_s -= blank_line_every_s
    await asyncio.sleep(wait_s)
    return await _end(response, body)


async def send_stream(
    request: web.Request, events: Sequence[bytes], wait_s: float, comment_every_s: float
) -> web.StreamResponse:
    """Send the events of a stream, each by itself, after `wait_s`, in which comments keep the connection alive."""
    response = await _begin(request, EVENT_HEADERS)
    while wait_s > comment_every_s:
        await asyncio.sleep(comment_every_s)
        await response.write(b": keep-alive\n\n")
        wait_s -= comment_every_s
    await asyncio.sleep(wait_s)
    for event in events:
        await response.write(event)
    return await _end(response)


async def drip(request: web.Request, body: bytes, every_s: float, lines: int | None) -> web.StreamResponse:
    """Send headers and a blank line every `every_s`: `lines` of them and then `body`, or (None) for ever."""
    response = await _begin(request, JSON_HEADERS)
    sent_lines = 0
    while lines is None or sent_lines < lines:
        await asyncio.sleep(every_s)
        await response.write(b"\n")
        sent_lines += 1
    return await _end(response, body)


async def send_slowly(request: web.Request, body: bytes, every_s: float) -> web.StreamResponse:
    """Send `body` one byte per `every_s`, under a Content-Length."""
    response = await _begin(request, {**_headers_of(body), "Content-Length": str(len(body))})
    for index in range(len(body)):
        await response.write(body[index : index + 1])
        await asyncio.sleep(every_s)
    return await _end(response)


async def send_padded(request: web.Request, body: bytes, size_bytes: int) -> web.StreamResponse:
    """Send `body` padded by spaces to `size_bytes`, in pieces: the whole is never in memory."""
    padding_bytes = max(0, size_bytes - len(body))
    response = await _begin(request, {**JSON_HEADERS, "Content-Length": str(len(body) + padding_bytes)})
    await response.write(body)
    while padding_bytes:
        piece = _PADDING[:padding_bytes]
        await response.write(piece)
        padding_bytes -= len(piece)
    return await _end(response)


async def send_then_close(request: web.Request, body: bytes) -> web.StreamResponse:
    """Send a complete answer that promises keep-alive, and close the connection all the same."""
    transport = request.transport
    response = await send(request, body)
    if transport is not None:
        transport.close()
    return response


async def send_half_then(
    end: Callable[[web.Request], Awaitable[NoReturn]], request: web.Request, body: bytes
) -> NoReturn:
    """Send headers that promise all of `body` and half of it, then `end` the exchange."""
    response = await _begin(request, {**_headers_of(body), "Content-Length": str(len(body))})
    await response.write(body[: len(body) // 2])
    await end(request)


async def hang(request: web.Request) -> NoReturn:
    """Send nothing more until the client goes or the server stops."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("unreachable: the future above has no result")


async def close(request: web.Request) -> NoReturn:
    """End the connection with a FIN after what was sent so far."""
    if request.transport is not None:
        request.transport.close()
    await hang(request)


async def reset(request: web.Request) -> NoReturn:
    """End the connection with a TCP reset, without TLS's goodbye."""
    transport = request.transport
    if transport is not None:
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        transport.abort()
    await hang(request)


def _headers_of(body: bytes) -> Mapping[str, str]:
    return EVENT_HEADERS if body.startswith(b"data: ") else JSON_HEADERS


async def _begin(request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    return response


async def _end(response: web.StreamResponse, body: bytes = b"") -> web.StreamResponse:
    if body:
        await response.write(body)
    await response.write_eof()
    return response
