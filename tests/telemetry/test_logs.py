import io
import json
import logging
import sys

import pytest

from deepseek_client import events, request_id
from deepseek_client.events import CallFinished, emit
from deepseek_client.telemetry import logs

KEY = 'sk-"quoted\\key'
FACTS = {"method": "chat", "mode": "async", "outcome": "ok", "attempts": 2, "waited_ms": 250, "ran_ms": 1500,
         "tokens": 18}  # fmt: skip


@pytest.fixture(autouse=True)
def outside():
    """No test leaves its id or its hooks to the next one."""
    token = request_id._current.set(None)
    hooks = events._hooks
    yield
    events._hooks = hooks
    request_id._current.reset(token)


def written(capsys, as_json, log):
    """What a logger of its own writes to stderr when `log` is called with it."""
    handler = logs.handler(as_json=as_json, secrets=("", KEY))
    handler.setStream(sys.stderr)
    logger = logging.getLogger("game")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    log(logger)
    logger.removeHandler(handler)
    return capsys.readouterr().err


def test_a_line_of_text(capsys):
    """A line has its time, level, request, logger and message; outside of a request "-"."""
    line = written(capsys, False, lambda logger: logger.warning("修炼 %s", 1))
    assert line.endswith(" WARNING [-] game: 修炼 1\n")
    request_id.accept("r-1")
    assert written(capsys, False, lambda logger: logger.info("x")).endswith(" INFO [r-1] game: x\n")


def test_what_was_typed_makes_no_line_of_its_own(capsys):
    """A line break in a message is shown as one; a traceback keeps its lines."""
    text = written(capsys, False, lambda logger: logger.info("x\r\n2026-01-01 INFO [r-2] forged"))
    assert text.count("\n") == 1
    assert text.endswith("x\\r\\n2026-01-01 INFO [r-2] forged\n")

    def fail(logger):
        try:
            raise ValueError("x")
        except ValueError:
            logger.exception("failed")

    assert written(capsys, False, fail).count("\n") > 3


def test_json_in_another_encoding(monkeypatch):
    """Where stderr cannot carry Chinese, JSON has it escaped as JSON does."""
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    handler = logs.handler(as_json=True, secrets=())
    line = handler.format(logging.makeLogRecord({"msg": "修炼", "request_id": "-"}))
    assert line.isascii()
    assert json.loads(line)["message"] == "修炼"


def test_a_line_of_json(capsys):
    """A line is one object, Chinese as Chinese, with the facts of a call as fields."""
    request_id.accept("r-1")
    line = written(capsys, True, lambda logger: logger.info("修炼\n%s", 1, extra={"facts": {"attempts": 2}}))
    assert line.count("\n") == 1
    assert "修炼" in line
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "INFO",
        "request_id": "r-1",
        "logger": "game",
        "message": "修炼\n1",
        "attempts": 2,
    }


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_no_line_shows_a_secret(capsys, as_json):
    """The key is masked in messages, arguments, tracebacks and as JSON writes it."""

    def log(logger):
        logger.warning("with %s", KEY)
        logger.warning(f"{KEY} twice {KEY}")
        try:
            raise ValueError(f"Bearer {KEY}")
        except ValueError:
            logger.exception("failed")

    text = written(capsys, as_json, log)
    assert text.count("***") == 4
    assert "quoted" not in text
    assert "Traceback" in text


def test_the_longer_secret_is_masked_first(capsys):
    """A secret that begins with another one leaves no tail."""
    for secrets in [("12345678", "12345678-tail"), ("12345678-tail", "12345678")]:
        handler = logs.handler(as_json=False, secrets=secrets)
        record = logging.makeLogRecord({"msg": "x 12345678-tail y", "request_id": "-"})
        assert handler.format(record).endswith("x *** y")


def test_what_is_too_short_to_be_a_secret_masks_nothing():
    """A token of one character must not make lines unreadable, or JSON that is none."""
    handler = logs.handler(as_json=True, secrets=("1",))
    record = logging.makeLogRecord({"msg": "1", "request_id": "-", "facts": {"attempts": 1}})
    assert json.loads(handler.format(record))["attempts"] == 1


def test_an_empty_secret_masks_nothing(capsys):
    """A deployment without a key has readable lines."""
    assert "***" not in written(capsys, False, lambda logger: logger.warning("plain"))


@pytest.mark.parametrize(
    ("error", "usage", "changed"),
    [
        (None, {"total_tokens": 18}, {}),
        ("rate_limited", {}, {"outcome": "rate_limited", "tokens": 0}),
    ],
    ids=["answered", "failed"],
)
def test_a_call_is_one_line(caplog, error, usage, changed):
    """A call logs its method, outcome, attempts, durations and tokens, as text and as fields, once."""
    logs.install()
    logs.install()
    caplog.set_level(logging.INFO, "deepseek_client.calls")
    emit(CallFinished("chat", "async", 0.25, 1.5, error, usage, 2))
    (record,) = caplog.records
    facts = {**FACTS, **changed}
    assert record.levelname == "INFO"
    assert record.facts == facts
    assert record.getMessage() == " ".join(f"{name}={value}" for name, value in facts.items())


def test_other_events_are_no_lines(caplog):
    """Only the end of a call is a line of its own."""
    logs.install()
    caplog.set_level(logging.DEBUG, "deepseek_client.calls")
    emit(events.AttemptFinished("chat", None, {}))
    assert caplog.records == []
