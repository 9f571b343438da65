"""How the sandbox's tests talk to it."""

import http.client
import json
import socket
from pathlib import Path

from support.patience import GIVE_UP_S

KEY = "sk-test_KEY"
ROOT = Path(__file__).parents[2]
OFF = {"type": "disabled"}
AN_HOUR_MS = 3_600_000


def payload(prompt="测试提示词 7", **changes):
    body = {"model": "deepseek-flash", "thinking": OFF, "messages": [{"role": "user", "content": prompt}]}
    body.update(changes)
    return {name: value for name, value in body.items() if value is not ...}


def ask(session, sandbox, prompt="测试提示词 7", *, key=KEY, path="/chat/completions", **changes):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = payload(prompt, **changes)
    return session.post(sandbox.url + path, json=body, headers=headers, timeout=GIVE_UP_S)


def choice(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def error(response):
    return response.json()["error"]


def raw_request(**changes):
    body = json.dumps(payload(**changes)).encode()
    head = f"POST /chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def connect(sandbox, request=b""):
    sock = socket.create_connection(("127.0.0.1", sandbox.port), timeout=GIVE_UP_S)
    sock.sendall(request)
    return sock


def read_half(sock):
    """Reads headers and the first half of the body that they promise."""
    with sock.makefile("rb") as stream:
        assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
        fields = http.client.parse_headers(stream)
        stream.read(int(fields["Content-Length"]) // 2)


def read_all(sock):
    """What came, and how it ended: "fin" or "reset"."""
    received = b""
    try:
        while piece := sock.recv(65536):
            received += piece
    except ConnectionResetError:
        return received, "reset"
    return received, "fin"
