"""What the clients send: a mix of all routes, bad bodies, and clients that hang up."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from .plan import WORKERS

__all__ = ["BAD_BODIES", "Call", "HangUp", "next_call", "warming_chat"]


class HangUp(NamedTuple):
    """How a client leaves: after how much of the body, how long after that, and whether with a reset."""

    share: float
    wait_s: float
    resets: bool


class Call(NamedTuple):
    """One request. `kind` says what a 200 looks like; `prompts` are what its answers must be to, if to anything."""

    kind: str
    method: str
    path: str
    body: bytes
    prompts: tuple[str, ...] = ()
    hang_up: HangUp | None = None


_CONTEXT = {
    "scene": "青云山",
    "player": {"realm": "筑基期"},
    "target_realm": "元婴期",
    "laws": [{"code": "FORBIDDEN_ARTS", "enabled": True}, {"code": "CROSS_REALM_KILL", "enabled": True}],
}
_UTTERANCES = ("用禁术攻击妖狼", "我要修炼", "和掌门说话", "打开背包", "去后山")
BAD_BODIES = (
    b"",
    b"{",
    b"[]",
    b'{"prompt": ""}',
    b'{"prompt": 7}',
    b'{"prompt": "\xff\xfe"}',
    b'{"promt": "x"}',
    b'{"prompt": "' + b"x" * 20_001 + b'"}',
    b'{"a":' * 5000,
)
_LONG = "天地玄黄" * 200


def next_call(rng: random.Random, number: int) -> Call:
    """A client's next request; `number` is no other request's and marks its prompts."""
    make = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    return make(rng, f"#{number}#")


def warming_chat(path: str) -> Call:
    """A plain chat, to /api/llm/chat or its like."""
    return _post(path, "chat", {"prompt": "#warm-up#"}, "#warm-up#")


def _post(path: str, kind: str, body: dict[str, Any], *prompts: str, method: str = "POST") -> Call:
    return Call(kind, method, f"/api/llm/{path}", json.dumps(body).encode(), prompts)


def _prompt(rng: random.Random, mark: str) -> str:
    return mark + (_LONG if rng.random() < 0.1 else "道友请留步")


def _chat(rng: random.Random, mark: str) -> Call:
    prompt = _prompt(rng, mark)
    method = "GET" if rng.random() < 0.1 else "POST"
    body = {"prompt": prompt, "async": False} if rng.random() < 0.1 else {"prompt": prompt}
    return _post("chat", "chat", body, prompt, method=method)


def _chat_sync(rng: random.Random, mark: str) -> Call:
    prompt = _prompt(rng, mark)
    return _post("chat/sync", "chat", {"prompt": prompt}, prompt)


def _parse(rng: random.Random, mark: str) -> Call:
    body = {"utterance": rng.choice(_UTTERANCES) + mark, "context": _CONTEXT}
    return _post(rng.choice(("parse", "parse", "parse/sync")), "parse", body)


def _batch(rng: random.Random, mark: str) -> Call:
    prompts = [f"{mark}{place}#" for place in range(rng.randint(2, WORKERS))]
    return _post("batch", "batch", {"requests": [{"prompt": prompt} for prompt in prompts]}, *prompts)


def _bad(rng: random.Random, mark: str) -> Call:
    path = rng.choice(("chat", "chat/sync", "parse", "parse/sync", "batch"))
    return Call("bad", "POST", f"/api/llm/{path}", rng.choice(BAD_BODIES))


def _probe(rng: random.Random, mark: str) -> Call:
    return Call("probe", "GET", rng.choice(("/health", "/ready", "/metrics", "/api/llm/status")), b"")


def _leave(rng: random.Random, mark: str) -> Call:
    call = rng.choice((_chat, _chat_sync, _parse, _batch))(rng, mark)
    share = rng.choice((1.0, 1.0, 1.0, 0.5))
    return call._replace(hang_up=HangUp(share, rng.uniform(0, 0.3), rng.random() < 0.5))


_WEIGHTS: dict[Callable[[random.Random, str], Call], int] = {
    _chat: 34,
    _chat_sync: 16,
    _parse: 20,
    _batch: 8,
    _bad: 6,
    _probe: 6,
    _leave: 10,
}
