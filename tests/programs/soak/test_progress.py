import io
from collections import Counter

import pytest

from .progress import Progress, clock
from .soaking import Moment
from .worker import Sample


class Terminal(io.StringIO):
    """A terminal's stream."""

    def isatty(self):
        return True


def moment(elapsed_s, slots=(8, 1)):
    """A moment under load."""
    outcomes = Counter(ok=90, bad_reply=4, overloaded=3, circuit_open=2, hung_up=1)
    return Moment(elapsed_s, "load", 102, outcomes, Sample(27, 21, 15, 44 * 1024 * 1024), slots)


def shown(stream, moments, total_s=120):
    """What is written of these."""
    progress = Progress(stream, total_s)
    for each in moments:
        progress.show(each)
    progress.close()
    return stream.getvalue()


def test_line():
    """It says how far the run is, what the process holds and what came of the requests."""
    assert shown(io.StringIO(), [moment(65)]) == (
        "soak: 1:05 of 2:00 load: 27 threads, 21+15 descriptors, 44.0 MiB, slots 8 busy + 1 queued; "
        "102 requests: 90 ok, 5 refused, 4 failed, 1 hung up\n"
    )


def test_server_without_a_free_thread():
    """Slots that nobody told are a dash."""
    assert "slots -;" in shown(io.StringIO(), [moment(65, slots=None)])


def test_pipe():
    """In a pipe a run writes about a dozen lines, and no control characters."""
    text = shown(io.StringIO(), [moment(elapsed_s) for elapsed_s in range(120)])
    assert (text.count("\n"), "\r" in text, "\x1b" in text) == (12, False, False)


def test_terminal(monkeypatch):
    """On a terminal one line is written anew each time, never longer than it is wide, and taken away at the end."""
    monkeypatch.setenv("COLUMNS", "60")
    text = shown(Terminal(), [moment(1), moment(2)])
    first, second, last = text.split("\r\x1b[K")[1:]
    assert (first[:12], second[:12], last) == ("soak: 0:01 o", "soak: 0:02 o", "")
    assert (len(first), "\n" in text) == (59, False)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.9, "1:05"), (86_400, "24:00:00")])
def test_clock(seconds, text):
    """Hours only where there are some."""
    assert clock(seconds) == text
