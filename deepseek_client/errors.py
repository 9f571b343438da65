"""Every way a call can fail, as one tree.

    DeepSeekError
    ├── ConfigError              no API key, bad setting
    ├── InvalidRequest           our caller's body, prompt or batch is wrong
    ├── Overloaded               no slot is free, or none in time
    ├── DeadlineExceeded         the call's time is over
    ├── CircuitOpen              the breaker refuses
    ├── PoolClosed               shutting down
    ├── CallerLeft               who asked for the call has closed the connection
    ├── UpstreamRejected         400, 404, 422 of the API; 401 and 403 that are not its own words
    ├── AuthenticationFailed     401, 403 of the API
    ├── InsufficientBalance      402
    ├── RateLimited              429
    ├── UpstreamUnavailable      408, 409, 425, 499, 5xx
    ├── ConnectionFailed         DNS, refused, TLS, reset, cut body, read timeout
    ├── BadReply                 200, but not an answer
    └── QueueUnavailable         the server that queues tasks is away or full

A program's own mistake is a ClientClosed, a RuntimeError and none of these.

A message is one sentence for whoever called us: it never carries a key, a path, a traceback or the API's own text
(the text of a 401 contains the key's tail). Foreign exceptions are chained as `__cause__`.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthenticationFailed",
    "BadReply",
    "CallerLeft",
    "CircuitOpen",
    "ClientClosed",
    "ConfigError",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DeepSeekError",
    "InsufficientBalance",
    "InvalidRequest",
    "Overloaded",
    "PoolClosed",
    "QueueUnavailable",
    "RateLimited",
    "UpstreamRejected",
    "UpstreamUnavailable",
]


class DeepSeekError(Exception):
    """Base of all: a call failed, and the class says how.

    Args:
        message: one sentence that is safe to show to a caller.
        retry_after_s: seconds after which a new try makes sense; None when nobody knows.
        api_message: the API's own words, masked and cut: for logs, never for an answer.

    Attributes:
        code: snake_case name for machines, part of the HTTP contract.
        http_status: what a web view answers.
        retryable: whether the same call may succeed when tried again soon.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    retryable: bool = False

    def __init__(self, message: str, *, retry_after_s: float | None = None, api_message: str = "") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.api_message = api_message


class ConfigError(DeepSeekError):
    """A setting is missing or wrong, or the call could not be built from it. Nothing was sent."""

    code = "not_configured"
    http_status = 500


class InvalidRequest(DeepSeekError):
    """Our caller's body, prompt or batch is wrong. Nothing was sent."""

    code = "invalid_request"
    http_status = 400


class Overloaded(DeepSeekError):
    """All workers are busy and the queue is full or too long, or the request waited too long. Nothing was sent."""

    code = "overloaded"
    http_status = 503


class DeadlineExceeded(DeepSeekError):
    """The call's time is over. If it had left the queue, the request may have reached the API and be billed."""

    code = "deadline_exceeded"
    http_status = 504


class CircuitOpen(DeepSeekError):
    """The breaker refuses calls while the API keeps failing. Nothing was sent."""

    code = "circuit_open"
    http_status = 503


class PoolClosed(DeepSeekError):
    """The pool is shutting down. A call that was running may have reached the API and be billed."""

    code = "closing"
    http_status = 503


class CallerLeft(DeepSeekError):
    """The request for which the call is made has lost its caller, who closed the connection. Nothing was sent."""

    code = "caller_left"
    http_status = 499  # nginx's number for it; nobody reads the answer


class ClientClosed(RuntimeError):
    """A program uses a client after its `close()`: a defect of the program. Nothing was sent."""


class UpstreamRejected(DeepSeekError):
    """The request was refused (400, 404, 422), or something before the API refused it (401, 403). It is not billed."""

    code = "upstream_rejected"
    http_status = 502


class AuthenticationFailed(DeepSeekError):
    """The API does not accept the key (401, 403). It arrived; it is not billed."""

    code = "authentication_failed"
    http_status = 502


class InsufficientBalance(DeepSeekError):
    """The account has no balance left (402). It arrived; it is not billed."""

    code = "insufficient_balance"
    http_status = 502


class RateLimited(DeepSeekError):
    """The API refuses more requests for now (429). It arrived; it is not billed."""

    code = "rate_limited"
    http_status = 503
    retryable = True


class UpstreamUnavailable(DeepSeekError):
    """The API is broken or overloaded (408, 409, 425, 499, 5xx). It arrived; it may have been billed."""

    code = "upstream_unavailable"
    http_status = 502
    retryable = True


class ConnectionFailed(DeepSeekError):
    """DNS, connect, TLS, a reset, a cut body or a read that took too long.

    After a failure to connect nothing was sent; after a reset or a cut body the request may have been billed.
    """

    code = "connection_failed"
    http_status = 502
    retryable = True


class BadReply(DeepSeekError):
    """The API said 200, but what followed is not an answer. It arrived; it was probably billed.

    Attributes:
        is_completion: the API did its part, but the model's text is blank or not what was asked for.
    """

    code = "bad_reply"
    http_status = 502
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        api_message: str = "",
        is_completion: bool = False,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, api_message=api_message)
        self.is_completion = is_completion


class QueueUnavailable(DeepSeekError):
    """The server that queues tasks is away, silent or full, or there is none. Nothing was sent, and nothing will be."""

    code = "queue_unavailable"
    http_status = 503
