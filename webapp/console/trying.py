"""What a person tries: one request to the application, sent by the console's own process."""

from __future__ import annotations

import http.client
import json
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Answer", "Question", "ask", "question_in"]

_CHARACTERS = 100_000  # of one question; the application has limits of its own
_ANSWER_BYTES = 8 * 1024 * 1024
_ROUTES = {
    ("chat", "async"): "/api/llm/chat",
    ("chat", "sync"): "/api/llm/chat/sync",
    ("parse", "async"): "/api/llm/parse",
    ("parse", "sync"): "/api/llm/parse/sync",
    ("batch", "async"): "/api/llm/batch",
}


@dataclass(frozen=True)
class Question:
    """What to send.

    Attributes:
        mode: "async" or "sync", as it was asked for.
        route: of the application.
        body: of the request.
    """

    mode: str
    route: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: of HTTP; 0 when there was no answer.
        body: its JSON object; {} if it is none.
        took_s: from the request to the whole of its answer.
        request_id: by which the application's log knows the request.
        mode: in which the calls really ran; "" if the application does not say.
        facts: what it says of them besides: "pid", "attempts", "waited_ms", "ran_ms".
        failure: why there is no answer, or none that can be read; "" if there is one.

    Threads: immutable.
    """

    status: int
    body: dict[str, Any]
    took_s: float
    request_id: str
    mode: str = ""
    facts: dict[str, int] = field(default_factory=dict)
    failure: str = ""


def question_in(form: Any) -> Question:
    """Returns what a form of the page asks for.

    Raises:
        ValueError: it is no such form; the text says why.
    """
    if not isinstance(form, dict):
        raise ValueError("need a JSON object")
    kind, mode, text = str(form.get("kind")), str(form.get("mode")), form.get("text")
    if (kind, mode) not in _ROUTES:
        raise ValueError("need a kind and a mode that go together")
    if not isinstance(text, str) or len(text) > _CHARACTERS:
        raise ValueError(f"need a text of at most {_CHARACTERS} characters")
    body: dict[str, Any] = {"prompt": text}
    if kind == "parse":
        given = {name: form.get(name) for name in ("scene", "realm", "target_realm")}
        words = {name: value for name, value in given.items() if isinstance(value, str)}
        context = {name: words.get(name, "") for name in ("scene", "target_realm")}
        body = {"utterance": text, "context": {**context, "player": {"realm": words.get("realm", "")}}}
    elif kind == "batch":
        body = {"requests": [{"prompt": line} for line in text.splitlines() if line.strip()]}
    return Question(mode, _ROUTES[kind, mode], body)


def ask(application: str, token: str, question: Question, limit_s: float) -> Answer:
    """Sends the question and returns what came of it; raises nothing.

    Args:
        application: its address, such as http://127.0.0.1:5000.
        token: WEB_API_TOKEN; "" for none.
        limit_s: for how long the application may say nothing.

    Threads: any; blocks until the answer is there.
    """
    request_id = f"console-{uuid.uuid4().hex[:12]}"
    headers = {
        "Content-Type": "application/json",
        "X-LLM-Source": "console",
        "X-Request-ID": request_id,
        **({"Authorization": f"Bearer {token}"} if token else {}),
    }
    began = time.monotonic()
    try:
        parts = urlsplit(application)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=limit_s)
        try:
            path = parts.path.rstrip("/") + question.route
            connection.request("POST", path, json.dumps(question.body).encode(), headers)
            reply = connection.getresponse()
            text = reply.read(_ANSWER_BYTES + 1)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: what no request can carry
        failure = str(error) or type(error).__name__
        return Answer(0, {}, time.monotonic() - began, request_id, failure=failure)
    took_s = time.monotonic() - began
    told = reply.headers.get("X-LLM-Calls", "")
    facts = {name: int(value) for name, value in re.findall(r"(\w+)=([0-9]{1,15})\b", told)}
    mode = (re.findall("mode=(async|sync)", told) or [""])[0]
    if len(text) > _ANSWER_BYTES:
        failure = f"the answer is longer than {_ANSWER_BYTES // 2**20} MiB"
        return Answer(reply.status, {}, took_s, request_id, mode, facts, failure)
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        return Answer(reply.status, {}, took_s, request_id, mode, facts, "the answer is no JSON object")
    return Answer(reply.status, body, took_s, request_id, mode, facts)
