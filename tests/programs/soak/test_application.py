import io

from .application import Log

WRITTEN = b"""started
Traceback (most recent call last):
  File "x.py", line 1, in <module>
ValueError: first
a line between
Traceback (most recent call last):
  File "x.py", line 2, in <module>
ValueError: second
stopped

"""


def test_log():
    """Tracebacks are counted, the first is kept whole, and the last line that says something is known."""
    log = Log(io.BytesIO(WRITTEN))
    log.finish()
    assert (log.tracebacks, log.last()) == (2, "stopped")
    assert log.first_traceback == WRITTEN.decode().splitlines()[1:4]


def test_empty_log():
    """A process that wrote nothing has a last line that says so, for the message of its end."""
    log = Log(io.BytesIO(b""))
    log.finish()
    assert (log.tracebacks, log.last()) == (0, "it wrote nothing")
