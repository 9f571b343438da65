import pytest
from flask import Flask

import deepseek_client
from deepseek_client import DeepSeekError
from deepseek_client.flask import SharedLoop, problems

# Source: section 6 of the design, as data. Class: (code, status).
ERROR_TABLE = {
    "ConfigError": ("not_configured", 500),
    "InvalidRequest": ("invalid_request", 400),
    "Overloaded": ("overloaded", 503),
    "DeadlineExceeded": ("deadline_exceeded", 504),
    "CircuitOpen": ("circuit_open", 503),
    "PoolClosed": ("closing", 503),
    "CallerLeft": ("caller_left", 499),
    "UpstreamRejected": ("upstream_rejected", 502),
    "AuthenticationFailed": ("authentication_failed", 502),
    "InsufficientBalance": ("insufficient_balance", 502),
    "RateLimited": ("rate_limited", 503),
    "UpstreamUnavailable": ("upstream_unavailable", 502),
    "ConnectionFailed": ("connection_failed", 502),
    "BadReply": ("bad_reply", 502),
    "QueueUnavailable": ("queue_unavailable", 503),
}


@pytest.fixture
def app():
    """A small app with the error table alone."""
    app = Flask("small")
    SharedLoop(app)
    problems.init_app(app)
    return app


def test_table_is_complete():
    """Every class of the error tree has its row in the table of the design."""
    classes = {name for name in deepseek_client.__all__ if _is_error(getattr(deepseek_client, name))}
    assert classes - {"DeepSeekError"} == set(ERROR_TABLE)


def _is_error(thing):
    return isinstance(thing, type) and issubclass(thing, DeepSeekError)


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async_view", "sync_view"])
@pytest.mark.parametrize("name", ERROR_TABLE)
def test_error_table(app, name, asynchronous):
    """Each class of the error tree is answered with its code, status and sentence, from any view."""
    error = getattr(deepseek_client, name)("One sentence.")

    def view():
        raise error

    async def view_async():
        raise error

    app.add_url_rule("/", view_func=view_async if asynchronous else view)
    answer = app.test_client().get("/")
    code, status = ERROR_TABLE[name]
    assert answer.get_json() == {"error": "One sentence.", "code": code, "text": ""}
    assert (answer.status_code, answer.content_type) == (status, "application/json")
    assert answer.headers.get("Retry-After") == ("1" if status == 503 else None)


@pytest.mark.parametrize("name", [name for name, (_, status) in ERROR_TABLE.items() if status == 503])
@pytest.mark.parametrize(
    ("retry_after_s", "header"),
    [
        *((None, "1"), (0, "1"), (0.2, "1"), (2.0, "2"), (2.1, "3"), (4000, "3600")),
        *((-4, "1"), (float("nan"), "1"), (float("inf"), "3600"), (float("-inf"), "1")),
    ],
)
def test_retry_after(app, name, retry_after_s, header):
    """Retry-After is what the error knows, in whole seconds, from 1 to 3600 whatever an application gave."""

    @app.get("/")
    def view():
        raise getattr(deepseek_client, name)("One sentence.", retry_after_s=retry_after_s)

    assert app.test_client().get("/").headers["Retry-After"] == header
