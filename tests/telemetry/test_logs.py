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
    hooks = events.listeners
    yield
    events.listeners = hooks
    request_id._current.reset(token)


def written(capsys, as_json, log):
    """What a logger of its own writes to stderr when `log` is called with it."""
    handler = logs.handler(as_json=as_json, secrets=("", KEY))
    logger = logging.getLogger("game")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        log(logger)
    finally:
        logger.removeHandler(handler)
    return capsys.readouterr().err


def test_a_line_of_text(capsys):
    """A line has its time, level, request, logger and message; outside of a request "-"."""
    line = written(capsys, False, lambda logger: logger.warning("修炼 %s", 1))
    assert line.endswith(" WARNING [-] game: 修炼 1\n")
    request_id.accept("r-1")
    assert written(capsys, False, lambda logger: logger.info("x")).endswith(" INFO [r-1] game: x\n")


def test_a_stderr_that_was_replaced_for_a_while(capsys, monkeypatch):
    """A handler that was made while a test runner had put its own stream there writes to what is there later."""
    logger = logging.getLogger("game")
    with monkeypatch.context() as patch, io.StringIO() as theirs:
        patch.setattr(sys, "stderr", theirs)
        handler = logs.handler(as_json=False, secrets=())
    logger.addHandler(handler)
    try:
        logger.warning("later")
        given = io.StringIO()
        handler.setStream(given)
        logger.warning("elsewhere")
    finally:
        logger.removeHandler(handler)
    assert capsys.readouterr().err.endswith(" WARNING [-] game: later\n")
    assert given.getvalue().endswith(" WARNING [-] game: elsewhere\n")


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


CONTROLS = [*map(chr, [*range(0x20), *range(0x7F, 0xA0)]), *"\u2028\u2029\u202a\u202e\u2066\u2069"]


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_terminal_shows_control_characters_and_obeys_none(capsys, as_json):
    """Escape sequences, line and paragraph separators and turned-around text are escaped, in tracebacks too."""

    def log(logger):
        logger.warning("a%sz", "".join(CONTROLS))
        try:
            raise ValueError("b" + "".join(CONTROLS) + "z")
        except ValueError:
            logger.exception("failed")

    text = written(capsys, as_json, log)
    assert [character for character in text if character in CONTROLS and character != "\n"] == []
    if as_json:
        assert [json.loads(line)["message"] for line in text.split("\n")[:2]] == [
            f"a{''.join(CONTROLS)}z",
            "failed",
        ]
    else:
        assert "\\x1b" in text
        assert "\\x9b" in text
        assert "\\u2028" in text
        assert "a\\x00" in text.split("\n")[0]


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_long_message_is_cut(capsys, as_json):
    """A reason phrase of 60 kB makes 4,000 characters and says how many are missing; so does one in a traceback."""
    reason = "\x1b[31mred" * 7500

    def log(logger):
        logger.error("the API answered %s", reason)
        try:
            raise ValueError(reason)
        except ValueError:
            logger.exception("failed")

    text = written(capsys, as_json, log)
    assert f"... ({len('the API answered ' + reason) - 4000} more characters)" in text
    assert f"... ({len('ValueError: ' + reason) - 4000} more characters)" in text
    assert len(text) < 30_000
    assert "\x1b" not in text


def test_a_long_traceback_is_cut(capsys):
    """An exception whose text has a hundred thousand lines does not fill the log with them."""

    def log(logger):
        try:
            raise ValueError("x\n" * 100_000)
        except ValueError:
            logger.exception("failed")

    text = written(capsys, False, log)
    assert len(text) < 45_000
    assert "more characters)" in text.splitlines()[-1]


def test_a_cut_leaves_no_part_of_a_secret(capsys):
    """A secret that lies where a message is cut is masked as a whole."""
    text = written(capsys, False, lambda logger: logger.error("x" * 3990 + KEY))
    assert "quoted" not in text
    assert "***" in text


def test_handlers_do_not_disturb_each_other(capsys):
    """What this handler escapes and cuts another one gets whole, and what another has formatted is escaped here."""
    seen = []
    other = logging.Handler()
    other.setFormatter(logging.Formatter())
    other.emit = lambda record: seen.append((record.exc_text, other.format(record)))

    def log(logger):
        logger.addHandler(other)
        logger.handlers += logger.handlers[:1]  # before it and after it
        try:
            raise ValueError("x\x1b" * 3000)
        except ValueError:
            logger.exception("failed")
        finally:
            logger.handlers[1:] = []

    text = written(capsys, False, log)
    ((cached, whole),) = seen
    assert cached is None
    assert "x\x1b" * 3000 in whole
    assert text.count("Traceback") == 2
    assert "\x1b" not in text


def test_the_legacy_client_s_own_lines(capsys):
    """What the legacy client itself logs of a failure is escaped and cut as any line."""

    def log(logger):
        legacy = logging.getLogger("deepseek_client.client")
        legacy.addHandler(logger.handlers[0])
        legacy.error("DeepSeek API error: %s", "\x1b]0;x\x07" * 9000)
        legacy.removeHandler(logger.handlers[0])

    text = written(capsys, False, log)
    assert "deepseek_client.client: DeepSeek API error: \\x1b]0;x\\x07" in text
    assert "more characters)" in text


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


def test_a_note_is_quoted(caplog):
    """What an operator should know beside is the last word of the line, and a field; without one there is neither."""
    logs.install()
    caplog.set_level(logging.INFO, "deepseek_client.calls")
    note = 'the deadline of 5 s is shorter than the client\'s "timeout"'
    emit(CallFinished("chat", "async", 0.25, 1.5, None, {"total_tokens": 18}, 2, note))
    (record,) = caplog.records
    assert record.facts == {**FACTS, "note": note}
    assert record.getMessage().endswith(f"tokens=18 note={json.dumps(note)}")


def test_a_stream_says_when_its_first_chunk_came(caplog):
    """The line of a stream has the time to its first chunk; that of another call has no such word."""
    logs.install()
    caplog.set_level(logging.INFO, "deepseek_client.calls")
    emit(CallFinished("talk", "async", 0.25, 1.5, None, {}, 1, first_chunk_s=0.5))
    emit(CallFinished("talk", "async", 0.25, 1.5, None, {}, 1))
    assert [record.facts.get("first_chunk_ms") for record in caplog.records] == [500, None]


def test_other_events_are_no_lines(caplog):
    """Only the end of a call is a line of its own."""
    logs.install()
    caplog.set_level(logging.DEBUG, "deepseek_client.calls")
    emit(events.AttemptFinished("chat", None, {}))
    assert caplog.records == []
