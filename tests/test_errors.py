import copy
import pickle
import re

import pytest

from deepseek_client import DeepSeekError, errors

# Design, section 6: class, code, HTTP status, retryable.
TABLE = [
    ("ConfigError", "not_configured", 500, False),
    ("InvalidRequest", "invalid_request", 400, False),
    ("Overloaded", "overloaded", 503, False),
    ("DeadlineExceeded", "deadline_exceeded", 504, False),
    ("CircuitOpen", "circuit_open", 503, False),
    ("PoolClosed", "closing", 503, False),
    ("CallerLeft", "caller_left", 499, False),
    ("UpstreamRejected", "upstream_rejected", 502, False),
    ("AuthenticationFailed", "authentication_failed", 502, False),
    ("InsufficientBalance", "insufficient_balance", 502, False),
    ("RateLimited", "rate_limited", 503, True),
    ("UpstreamUnavailable", "upstream_unavailable", 502, True),
    ("ConnectionFailed", "connection_failed", 502, True),
    ("BadReply", "bad_reply", 502, True),
    ("QueueUnavailable", "queue_unavailable", 503, False),
]
NAMES = [name for name, *_ in TABLE]

each_class = pytest.mark.parametrize("kind", [getattr(errors, name) for name in NAMES], ids=NAMES)


@pytest.mark.parametrize(("name", "code", "http_status", "retryable"), TABLE, ids=NAMES)
def test_class_has_its_row_of_the_table(name, code, http_status, retryable):
    """Code, HTTP status and whether a retry makes sense are the documented ones."""
    kind = getattr(errors, name)
    assert (kind.code, kind.http_status, kind.retryable) == (code, http_status, retryable)


def test_table_is_complete():
    """The module has the base, the classes of the table and no other."""
    assert sorted(errors.__all__) == sorted(["ClientClosed", "DeepSeekError", *NAMES])


def test_codes_are_distinct():
    """A code names one class."""
    codes = [code for _, code, *_ in TABLE]
    assert len(set(codes)) == len(codes)


@each_class
def test_each_is_a_deepseek_error(kind):
    """One `except DeepSeekError` catches them all; none is a BaseException that handlers miss."""
    assert issubclass(kind, DeepSeekError)
    assert issubclass(DeepSeekError, Exception)


@each_class
def test_nobody_knows_when_to_retry_unless_told(kind):
    """`retry_after_s` is None by default, and what was given otherwise; the message is the sentence."""
    error = kind("The call failed.")
    assert (str(error), error.retry_after_s) == ("The call failed.", None)
    assert kind("The call failed.", retry_after_s=2.5).retry_after_s == 2.5


@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
@each_class
def test_error_crosses_processes(kind, duplicate):
    """A copy, also by pickle, keeps class, message and `retry_after_s`."""
    error = duplicate(kind("The call failed.", retry_after_s=2.5))
    assert (type(error), str(error), error.retry_after_s) == (kind, "The call failed.", 2.5)


@each_class
def test_docstring_says_whether_it_may_have_been_billed(kind):
    """Each class says that nothing was sent, or whether what was sent may be billed."""
    text = " ".join((kind.__doc__ or "").split())
    assert re.search(r"\b([Nn]othing was sent|billed)\b", text), text


def test_drawn_tree_is_the_real_one():
    """The tree in the module's docstring has one branch per class, right under the base, with a meaning."""
    root, *branches = re.findall(r"^    (?:[├└]── )?(\w+)(?: {2,}\S.*)?$", errors.__doc__, re.MULTILINE)
    assert root == "DeepSeekError"
    assert branches == NAMES
    assert [
        kind.__name__ for kind in DeepSeekError.__subclasses__() if kind.__module__ == errors.__name__
    ] == (branches)


def test_the_apis_own_words_are_kept_apart():
    """`api_message` is for logs: it is no part of the sentence that a caller gets."""
    error = errors.UpstreamRejected("The API refused the request.", api_message="Content Exists Risk")
    assert (str(error), error.api_message) == ("The API refused the request.", "Content Exists Risk")
    assert errors.UpstreamRejected("x").api_message == ""


def test_a_closed_client_is_no_failure_of_a_call():
    """ClientClosed is a RuntimeError: a view must not answer a program's mistake as if the API had failed."""
    assert issubclass(errors.ClientClosed, RuntimeError)
    assert not issubclass(errors.ClientClosed, DeepSeekError)
