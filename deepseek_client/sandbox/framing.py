"""Replies that no HTTP library writes of its own accord: interim ones, wrong lengths, too many bytes, lost packets."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import web

from . import wire

__all__ = ["send_after_interim", "send_raw", "send_then_stray", "send_then_vanish", "send_with_lengths"]

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_SO_ATTACH_FILTER = 26  # of <asm-generic/socket.h>; the socket module has no name for it
_DROP_EVERYTHING = struct.pack(
    "HBBI", 0x06, 0, 0, 0
)  # one instruction of the classic packet filter: "return 0"


class _Sent(web.StreamResponse):
    """What a handler returns when it has written the reply to the connection itself."""

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None

    @property
    def keep_alive(self) -> bool:
        return True


async def send_after_interim(
    request: web.Request, body: bytes, statuses: Sequence[int], delay_s: float
) -> web.StreamResponse:
    """Send an interim reply for each of `statuses`, and after `delay_s` the final one."""
    for status in statuses:
        field = "Link: </style.css>; rel=preload\r\n" if status == HTTPStatus.EARLY_HINTS else ""
        _write(request, f"HTTP/1.1 {status} {_PHRASES.get(status, 'Interim')}\r\n{field}\r\n".encode())
    await asyncio.sleep(delay_s)
    return await wire.send(request, body)


async def send_raw(
    request: web.Request, head: str, body: bytes, *, closes: bool = False
) -> web.StreamResponse:
    """Send `head` as it is, from its status line to its blank line, and `body` after it.

    Args:
        closes: the connection is closed afterwards.
    """
    _write(request, head.encode("latin-1", "replace") + body)
    if closes and request.transport is not None:
        request.transport.close()
    return _Sent()


async def send_with_lengths(
    request: web.Request, body: bytes, lengths: Sequence[str], *, chunked: bool
) -> web.StreamResponse:
    """Send `body` under one Content-Length for each of `lengths`; "right" stands for the true one.

    Args:
        chunked: the body is sent in chunks besides, and a Transfer-Encoding says so.
    """
    fields = [f"{name}: {value}" for name, value in wire.JSON_HEADERS.items()]
    fields += [f"Content-Length: {len(body) if length == 'right' else length}" for length in lengths]
    if chunked:
        fields.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return await send_raw(request, "\r\n".join(["HTTP/1.1 200 OK", *fields, "\r\n"]), body)


async def send_then_stray(
    request: web.Request, body: bytes, stray: str, delay_s: float
) -> web.StreamResponse:
    """Send a complete answer, and `delay_s` after it bytes that belong to no reply, on the same connection.

    Without a delay they come with the answer's last bytes; later ones may cross the client's next request.
    """
    if delay_s == 0:
        fields = [f"{name}: {value}" for name, value in wire.JSON_HEADERS.items()]
        head = "\r\n".join(["HTTP/1.1 200 OK", *fields, f"Content-Length: {len(body)}", "\r\n"])
        return await send_raw(request, head, body + stray.encode("latin-1", "replace"))
    response = await wire.send(request, body)
    await asyncio.sleep(delay_s)
    _write(request, stray.encode("latin-1", "replace"))
    return response


async def send_then_vanish(request: web.Request, body: bytes) -> web.StreamResponse:
    """Send a complete answer; what the client sends after it is lost, as behind a NAT that forgot the connection.

    Works on Linux; elsewhere the connection stays as it is.
    """
    sock = None if request.transport is None else request.transport.get_extra_info("socket")
    if sock is not None and sys.platform == "linux":
        # Before the answer, to which the client's next request may come at once; what goes out is not filtered.
        instructions = ctypes.create_string_buffer(_DROP_EVERYTHING)
        program: Any = struct.pack("HL", 1, ctypes.addressof(instructions))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    return await wire.send(request, body)


def _write(request: web.Request, data: bytes) -> None:
    if request.transport is None:
        raise ConnectionResetError("the client has left")
    request.transport.write(data)
