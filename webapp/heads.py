"""What gunicorn itself answers to a request whose head it cannot read: the error shape of all other answers."""

from __future__ import annotations

import http
import json
import sys
from typing import Any

from deepseek_client import InvalidRequest

from .answers import HEADERS

__all__ = ["refuse_heads_in_json"]

_SENTENCES = {
    403: "The request is not allowed.",
    414: "The request line is too long.",
    417: "The header Expect asks for something else than 100-continue.",
    431: "The headers are too large, or too many.",
    501: "The Transfer-Encoding is not supported: need chunked, or none and a Content-Length.",
}


def refuse_heads_in_json() -> None:
    """Has this worker answer {"error", "code", "text": ""} where gunicorn would answer a page of HTML.

    gunicorn's page repeats what it could not read; these sentences do not.

    Threads: the main one, before the worker serves.
    """
    # Where every version of gunicorn looks it up for each answer.
    sys.modules["gunicorn.util"].write_error = _write  # type: ignore[attr-defined]


def _write(sock: Any, status: int, reason: str, _message: str) -> None:
    code, sentence = InvalidRequest.code, _SENTENCES.get(status, "The request line or a header is malformed.")
    if status == http.HTTPStatus.INTERNAL_SERVER_ERROR:
        code, sentence = "internal_server_error", "The server could not answer the request."
    body = json.dumps({"error": sentence, "code": code, "text": ""}, separators=(",", ":")) + "\n"
    headers = {
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **HEADERS,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    answer = f"HTTP/1.1 {status} {reason}\r\n{head}\r\n{body}".encode("latin1")
    sys.modules["gunicorn.util"].write_nonblock(sock, answer)
