"""Heads of requests and replies, written and read at once where nothing in them is unusual.

http.client writes a head field by field, and hands one that has come to the parser of e-mails: an eighth of a call's
CPU. What is made here is what it would have made. A head that is not plain is left to it: one with a folded line, a
character that is no printable ASCII, a field without a value, or a media type whose e-mail would have parts.
"""

from __future__ import annotations

import functools
import http.client
import re
from typing import Any, NamedTuple

import urllib3.connection
from urllib3.util import SKIP_HEADER

from .originals import Original, Originals

__all__ = ["Head", "PlainHead", "are_lines_original", "plain_head", "plain_line"]

_FIELDS_LIMIT = 100  # of http.client, which raises an error for more
_DIGITS_LIMIT = 18  # of a length; nobody sends more bytes than that
# Lines that most requests of a client have. No other is kept: a key, or a cookie, would outlive its client.
_KEPT_FIELDS = frozenset({"Accept", "Accept-Encoding", "Connection", "Content-Type", "Host", "User-Agent"})
_KEPT_CHARS = 200
_LINES_KEPT = 100
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_is_plain_line = re.compile(f"{_NAME}: [ -~]*").fullmatch
_are_plain_lines = re.compile(rf"(?:{_NAME}: [!-~](?:[ -~]*[!-~])?\r\n)+".encode()).fullmatch
_has_parts = re.compile("multipart|message", re.IGNORECASE).search

_CLIENT, _CONNECTION = http.client.__name__, urllib3.connection.__name__
are_lines_original = Originals(
    [
        *(
            Original(http.client.HTTPConnection, name, _CLIENT)
            for name in ("putrequest", "putheader", "endheaders", "_output")
        ),
        *(
            Original(urllib3.connection.HTTPConnection, name, _CONNECTION)
            for name in ("request", "putrequest", "putheader")
        ),
    ]
).are_in_place
"""Whether all that writes the head of a request is in its place: an instrumentation adds fields there.

Threads: any.
"""
_are_readers_original = Originals(
    [
        Original(http.client, "parse_headers", _CLIENT),
        Original(http.client, "HTTPMessage", _CLIENT),
        Original(http.client.HTTPResponse, "begin", _CLIENT),
    ]
).are_in_place


def plain_line(name: str, value: str) -> bytes | None:
    """The line that a request's field becomes; None for one of which http.client and urllib3 know more.

    Threads: any.
    """
    if name in _KEPT_FIELDS and len(value) <= _KEPT_CHARS:
        return _kept_line(name, value)
    return _line(name, value)


def _line(name: str, value: str) -> bytes | None:
    line = f"{name}: {value}"
    return line.encode() if _is_plain_line(line) and value != SKIP_HEADER else None


_kept_line = functools.lru_cache(maxsize=_LINES_KEPT)(_line)


class Head(http.client.HTTPMessage):
    """The fields of a plain head.

    Threads: as its base class.
    """

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        super().__init__()
        self.set_payload("")  # as the parser leaves it
        self._headers = fields.copy()
        self._plain = fields

    def items(self) -> list[tuple[str, str]]:
        """Returns the fields; as long as they are the plain ones, no value has to be looked at."""
        return self._plain.copy() if self._headers == self._plain else super().items()


class PlainHead(NamedTuple):
    """What a plain head says.

    Attributes:
        size_bytes: how long it is, with the blank line.
        is_chunked: whether the body comes in chunks.
        closes: whether the server closes the connection after the body.
        length_bytes: of the body; None if that is not said, or the body comes in chunks.
    """

    fields: Head
    size_bytes: int
    is_chunked: bool
    closes: bool
    length_bytes: int | None


def plain_head(data: bytes) -> PlainHead | None:
    """What the head says that the data begin with, after the status line of HTTP/1.1; None if it is not plain.

    Threads: any.
    """
    end = data.find(b"\r\n\r\n") + 2
    if end < 2 or not _are_plain_lines(data, 0, end) or not _are_readers_original():
        return None
    lines = data[: end - 2].decode("ascii").split("\r\n")
    fields: list[Any] = [tuple(line.split(": ", 1)) for line in lines]
    by_name = {name.lower(): value for name, value in reversed(fields)}  # of several the first counts
    length = by_name.get("content-length", "")
    if (
        len(fields) >= _FIELDS_LIMIT
        or _has_parts(by_name.get("content-type", ""))
        or (length and not (length.isdigit() and len(length) <= _DIGITS_LIMIT))
    ):
        return None
    is_chunked = by_name.get("transfer-encoding", "").lower() == "chunked"
    length_bytes = int(length) if length and not is_chunked else None
    has_end = is_chunked or length_bytes is not None
    closes = not has_end or "close" in by_name.get("connection", "").lower()
    return PlainHead(Head(fields), end + 2, is_chunked, closes, length_bytes)
