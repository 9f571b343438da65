"""The HTTP contract as OpenAPI 3.1, which GET /api/openapi.json serves.

A route is one entry in `_paths`; tests hold that table against the application's routes. Limits come from the settings,
codes and statuses from the errors.
"""

from __future__ import annotations

from typing import Any

from deepseek_client import DeepSeekError, InvalidRequest, Settings, __version__

from .bodies import BODY_LIMIT_BYTES

__all__ = ["describe"]

_Json = dict[str, Any]

# What Flask itself refuses, and what webapp.answers makes of it.
_REFUSALS = {
    401: "unauthorized",
    403: InvalidRequest.code,
    404: "not_found",
    405: "method_not_allowed",
    408: InvalidRequest.code,
    409: InvalidRequest.code,
    410: "gone",
    413: InvalidRequest.code,
    500: "internal_server_error",
}
_CALL = (400, 408, 413, 499, 500, 502, 503, 504)  # how a route that makes calls may fail
_SUBMISSION, _TASK = (400, 408, 409, 410, 413, 500, 503), (404, 410, 500, 503)
_WHEN = {
    400: "The body is wrong; nothing was sent.",
    401: "The token is missing or wrong.",
    403: "A browser sends it for a web page of another origin.",
    404: "There never was such a task.",
    408: "The body came too slowly; nothing was sent.",
    409: "The Idempotency-Key was used for another body.",
    410: "The task has ended, and is no longer kept.",
    413: f"The body is larger than {BODY_LIMIT_BYTES} bytes.",
    499: "The caller had closed its connection, or its sending side: no call was made.",
    500: "The server is not configured, or has a defect.",
    502: "The API, or the way to it, failed.",
    503: "No call can be made now.",
    504: "The call's time was over.",
}
_ABOUT = (
    "A failed request answers a Problem. Any other path answers 404 `not_found`, any other method 405 "
    f"`method_not_allowed`. A body is JSON in UTF-8, of at most {BODY_LIMIT_BYTES} bytes, whatever its Content-Type."
)
_TEXT: _Json = {"type": "string"}
_COUNT: _Json = {"type": "integer", "minimum": 0}
# What Python, and so the server, calls blank; \S is another set in each dialect of regular expressions.
_BLANK = "".join(f"\\u{number:04x}" for number in range(0x3001) if chr(number).isspace())
_TASK_ID: _Json = {"name": "task_id", "in": "path", "required": True, "schema": {**_TEXT, "minLength": 1}}
_WAIT: _Json = {
    "name": "wait", "in": "query", "schema": {"type": "number", "minimum": 0},
    "description": "Seconds to wait for the end; LLM_DEADLINE_S at most, and not under sync workers.",
}  # fmt: skip
_KEY: _Json = {
    "name": "Idempotency-Key", "in": "header",
    "schema": {**_TEXT, "pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
    "description": "The same key and body are the same task for 24 hours.",
}  # fmt: skip
_HEADERS: _Json = {
    "Location": {"schema": _TEXT, "required": True},
    "X-Request-ID": {"schema": _TEXT, "description": "The caller's own or a new one; it is in the log."},
    "Retry-After": {"schema": {"type": "integer", "minimum": 1, "maximum": 3600}, "required": True},
    "WWW-Authenticate": {"schema": _TEXT, "required": True},
}


def describe(settings: Settings) -> _Json:
    """Returns the OpenAPI document of an application with these settings; it says nothing that is secret.

    Threads: any.
    """
    statuses = (*_CALL, 404, 409, 410, 401 if settings.web_api_token else 403)
    components: _Json = {
        "schemas": _schemas(settings),
        "responses": {str(status): _problem(status) for status in statuses},
    }
    if settings.web_api_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "webapp", "version": __version__, "description": _ABOUT},
        "paths": _paths(settings),
        "components": components,
    }


def _paths(settings: Settings) -> _Json:
    """Every route; one more needs its entry here, and its schemas in `_schemas`."""
    chat = _call(settings, "ChatRequest", "ChatAnswer", "One prompt.")
    chat_sync = _call(settings, "TextRequest", "TextAnswer", "One prompt, in the request's own thread.")
    parse = _call(settings, "ParseRequest", "ParseAnswer", "What a player's words mean.")
    return {
        "/api/llm/chat": {"post": chat, "get": {**chat, "summary": "As POST, the body included."}},
        "/api/llm/chat/sync": {"post": chat_sync},
        "/api/llm/parse": {"post": parse},
        "/api/llm/parse/sync": {"post": {**parse, "summary": "The same, in the request's own thread."}},
        "/api/llm/batch": {"post": _call(settings, "BatchRequest", "BatchAnswer", "Several prompts at once.")},
        "/api/llm/status": {
            "get": _guarded(settings, _operation("What this process is set to, and its pool.", "Status"))
        },
        "/api/llm/tasks": {"post": _submission(settings)},
        "/api/llm/status/{task_id}": {
            "get": _of_task(settings, "A task as it is now, or when it has ended.", (400, *_TASK), _WAIT)
        },
        "/api/llm/tasks/{task_id}": {"delete": _of_task(settings, "Ends a task that has not ended.", _TASK)},
        "/api/openapi.json": {"get": _operation("This document; it needs no token.", "Document")},
        "/health": {"get": _operation("The process lives.", "Health")},
        "/ready": {
            "get": _with(_operation("It can make calls now.", "Ready"), {"503": _answer("Unready", "Not now.")})
        },
        "/metrics": {"get": {"summary": "Prometheus text.", "responses": {"200": _plain("Of all workers.")}}},
    }  # fmt: skip


def _call(settings: Settings, takes: str, gives: str, summary: str) -> _Json:
    """A route that makes calls: a body, the ways in which a call fails, and the token."""
    body = {"required": True, "content": {"application/json": {"schema": _ref("schemas", takes)}}}
    failures = {str(status): _ref("responses", str(status)) for status in _CALL}
    return _guarded(settings, {**_with(_operation(summary, gives), failures), "requestBody": body})


def _submission(settings: Settings) -> _Json:
    """Answered at once, 202: a worker of the queue makes the call."""
    schema = {"oneOf": [_ref("schemas", "TaskTextRequest"), _ref("schemas", "ParseRequest")]}
    accepted = _answer("Task", "Accepted; poll where Location says.", ("Retry-After", "Location"))
    accepted["headers"]["Retry-After"] = {**_HEADERS["Retry-After"], "required": False}
    responses = {"202": accepted, **{str(status): _ref("responses", str(status)) for status in _SUBMISSION}}
    return _guarded(
        settings,
        {
            "summary": "One prompt, or what a player's words mean, as a task.",
            "parameters": [_KEY],
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": responses,
        },
    )


def _of_task(settings: Settings, summary: str, statuses: tuple[int, ...], *parameters: _Json) -> _Json:
    failures = {str(status): _ref("responses", str(status)) for status in statuses}
    operation = {**_with(_operation(summary, "Task"), failures), "parameters": [_TASK_ID, *parameters]}
    return _guarded(settings, operation)


def _guarded(settings: Settings, operation: _Json) -> _Json:
    """An operation below /api/llm/: it wants the token, or without one no page of another site."""
    if settings.web_api_token:
        return {**_with(operation, {"401": _ref("responses", "401")}), "security": [{"token": []}]}
    return _with(operation, {"403": _ref("responses", "403")})


def _operation(summary: str, gives: str) -> _Json:
    return {"summary": summary, "responses": {"200": _answer(gives, "Done.")}}


def _with(operation: _Json, responses: _Json) -> _Json:
    return {**operation, "responses": {**operation["responses"], **responses}}


def _answer(schema: str, description: str, headers: tuple[str, ...] = ()) -> _Json:
    return {
        "description": description,
        "headers": {name: _HEADERS[name] for name in ("X-Request-ID", *headers)},
        "content": {"application/json": {"schema": _ref("schemas", schema)}},
    }


def _plain(description: str) -> _Json:
    return {"description": description, "content": {"text/plain": {"schema": _TEXT}}}


def _problem(status: int) -> _Json:
    """The answer with this status: a Problem with one of the codes that have it."""
    headers = {401: ("WWW-Authenticate",), 503: ("Retry-After",)}.get(status, ())
    codes = {error.code for error in _errors() if error.http_status == status} | {_REFUSALS.get(status)} - {
        None
    }
    answer = _answer("Problem", _WHEN[status], headers)
    narrow = {"type": "object", "properties": {"code": {"enum": sorted(map(str, codes))}}}
    answer["content"]["application/json"]["schema"] = {"allOf": [_ref("schemas", "Problem"), narrow]}
    return answer


def _errors() -> list[type[DeepSeekError]]:
    # A program's own subclasses are none of the contract.
    return [error for error in DeepSeekError.__subclasses__() if error.__module__ == DeepSeekError.__module__]


def _ref(kind: str, name: str) -> _Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _object(required: _Json, optional: _Json | None = None, **more: Any) -> _Json:
    return {"type": "object", "required": [*required], "properties": {**required, **(optional or {})}, **more}


def _exact(properties: _Json) -> _Json:
    """An answer of ours: these and no others."""
    return _object(properties, additionalProperties=False)


def _schemas(settings: Settings) -> _Json:
    return {**_request_schemas(settings), **_answer_schemas()}


def _request_schemas(settings: Settings) -> _Json:
    text = {"type": "string", "maxLength": settings.prompt_limit}
    prompt = {**text, "minLength": 1, "pattern": f"[^{_BLANK}]"}
    optional_text = {**text, "type": ["string", "null"]}
    law = _object({"code": _TEXT}, {"enabled": {"type": "boolean", "default": True}})
    context = {
        "scene": optional_text,
        "player": {"type": ["object", "null"], "properties": {"realm": optional_text}},
        "target_realm": optional_text,
        "laws": {"type": ["array", "null"], "items": law},
    }
    return {
        "TextRequest": _object({"prompt": prompt}),
        "TaskTextRequest": {**_object({"prompt": prompt}), "not": {"required": ["utterance"]}},
        "ChatRequest": _object({"prompt": prompt}, {"async": {"type": "boolean", "default": True}}),
        "ParseRequest": _object(
            {"utterance": prompt},
            {"context": {"type": ["object", "null"], "properties": context}},
            description=f"What is sent of it has at most {settings.prompt_limit} characters in all.",
        ),
        "BatchRequest": _object({
            "requests": {
                "type": "array",
                "minItems": 1,
                "maxItems": settings.batch_limit,
                "items": _object({"prompt": prompt}),
                "description": "An entry that is wrong fails alone, in its place of the results.",
            }
        }),
    }  # fmt: skip


def _answer_schemas() -> _Json:
    code = {"enum": sorted({error.code for error in _errors()} | {*_REFUSALS.values()})}
    entry = [
        _exact({"text": _TEXT, "success": {"const": True}}),
        _exact({"error": _TEXT, "code": code, "success": {"const": False}}),
    ]
    flag = {"type": "boolean"}
    return {
        "Problem": _exact({"error": {**_TEXT, "minLength": 1}, "code": code, "text": {"const": ""}}),
        "TextAnswer": _exact({"text": _TEXT}),
        "ChatAnswer": _exact({"text": _TEXT, "mode": {"enum": ["async", "sync"]}}),
        "ParseAnswer": _exact({"intent": _TEXT, "slots": {"type": "object"}, "allowed": flag, "reason": _TEXT}),
        "BatchAnswer": _exact({
            "results": {"type": "array", "items": {"oneOf": entry}},
            "total": _COUNT, "successful": _COUNT, "failed": _COUNT,
        }),
        "Status": _object({
            "status": {"const": "ok"}, "api_key_configured": flag, "endpoints": {"type": "array", "items": _TEXT},
            "version": _TEXT, "async_enabled": flag, "engine": _TEXT, "pid": _COUNT,
            "pool": {"type": "object", "additionalProperties": _COUNT}, "upstream": {"enum": ["sandbox", "deepseek"]},
        }),
        "Task": _object(
            {"task_id": _TEXT, "status": {"enum": ["pending", "started", "completed", "failed", "cancelled"]}},
            {"result": {}, "error": _TEXT, "code": _TEXT},
            additionalProperties=False,
        ),
        "Document": _object({"openapi": _TEXT}),
        "Health": _exact({"status": {"const": "healthy"}}),
        "Ready": _exact({"status": {"const": "ready"}}),
        "Unready": _exact({"status": {"const": "unready"}, "reason": _TEXT}),
    }  # fmt: skip
