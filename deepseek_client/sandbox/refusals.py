"""What the API refuses and in which words."""

from __future__ import annotations

import json
from http import HTTPStatus

__all__ = [
    "CURRENT_MODELS",
    "Refusal",
    "bad_key",
    "documented_refusal",
    "over_concurrency",
    "unsupported_model",
]

CURRENT_MODELS = ("deepseek-flash", "deepseek-v4-pro")


class Refusal(Exception):
    """An answer other than 200; nothing was generated, so nothing is billed.

    `code` is ``invalid_request_error`` for 401 and 402 too, as it is at the API: only `status` classifies.

    Threads: raised and answered in the event loop's thread.
    """

    def __init__(
        self,
        status: int,
        message: str,
        error_type: str = "invalid_request_error",
        code: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        error = {"message": message, "type": error_type, "param": None, "code": code}
        self.body = json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")


def unsupported_model(model: str) -> Refusal:
    """The 400 for a retired or an unknown model."""
    names = ", ".join(CURRENT_MODELS)
    return Refusal(400, f"The supported API model names are {names}, but you passed {model}.")


def bad_key(api_key: str) -> Refusal:
    """The 401 for a wrong key, or for none (""); like the API's it carries the key's last four characters."""
    message = f"Authentication Fails, Your api key: ****{api_key[-4:]} is invalid"
    return Refusal(401, message, "authentication_error")


def over_concurrency(in_flight: int, limit: int) -> Refusal:
    """The 429 that names both figures; the API sends no rate-limit headers with it."""
    message = (
        f"Your current concurrency is {in_flight}, which exceeds your concurrency limit of {limit}. "
        "Please wait for replies before you send more requests."
    )
    return Refusal(429, message, "rate_limit_error", "rate_limit_error")


def documented_refusal(status: int, *, model: str, api_key: str, limit: int) -> Refusal:
    """The error body that goes with `status` when a script gives none.

    Source: the vendor's error table; a status that it does not list carries its HTTP phrase.
    """
    if status == 400:
        return unsupported_model(model)
    if status == 401:
        return bad_key(api_key)
    if status == 402:
        return Refusal(402, "Insufficient Balance", "unknown_error")
    if status == 422:
        return Refusal(422, "Invalid parameters: the request body contains invalid parameters.")
    if status == 429:
        return over_concurrency(limit + 1, limit)
    if status == 500:
        return Refusal(500, "The server encountered an issue.", "server_error", "server_error")
    if status == 503:
        return Refusal(
            503, "The server is overloaded due to high traffic.", "service_unavailable_error", "overloaded"
        )
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = f"Status {status}"
    return Refusal(status, phrase, "server_error" if status >= 500 else "invalid_request_error")
