import os
import socket
import subprocess
import sys

import pytest

from .worker import Sample, least, sample_of

NO_PORT = 1
MIB = 1024 * 1024

# Does each line that it is told, and says so when it is done.
CHILD = """
import socket, sys, threading
for line in sys.stdin:
    exec(line)
    print(flush=True)
"""

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")


class Child:
    """A process that does what it is told and nothing else."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.tell("pass")

    def tell(self, line):
        """Returns when the child has done it."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "\n"

    def sample(self, port=NO_PORT):
        """What it is seen to hold."""
        return sample_of(self.process.pid, port)


@pytest.fixture
def child():
    """A child, and its end."""
    child = Child()
    with child.process:
        yield child


@pytest.mark.parametrize(
    ("figure", "line"),
    [
        pytest.param(
            "threads", "threading.Thread(target=threading.Event().wait, daemon=True).start()", id="thread"
        ),
        pytest.param("descriptors", "held = open('/dev/null')", id="file"),
        pytest.param("descriptors", "held = socket.socket()", id="socket"),
    ],
)
def test_one_more(child, figure, line):
    """A thread, a file or a socket is one more, and nothing else is."""
    before = child.sample()
    child.tell(line)
    assert child.sample()[:3] == before._replace(**{figure: getattr(before, figure) + 1})[:3]


def test_connection_is_counted_apart(child):
    """A socket connected to the upstream's port is a connection and no descriptor, also when the other side closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        before = child.sample(port)
        child.tell(f"held = socket.create_connection(('127.0.0.1', {port}))")
        server.accept()[0].close()
        now = child.sample(port)
    assert (now.connections, now.descriptors) == (before.connections + 1, before.descriptors)


def test_memory_is_counted(child):
    """Memory that is held is seen, to the page."""
    before = child.sample().memory_bytes
    child.tell(f"held = bytearray(b'x') * {32 * MIB}")
    assert child.sample().memory_bytes - before == pytest.approx(32 * MIB, abs=MIB)


def test_process_that_is_gone(child):
    """Its end is an OSError, not a figure."""
    child.process.communicate()
    with pytest.raises(OSError, match=str(child.process.pid)):
        child.sample()


def test_least():
    """The least of each figure is taken, not the least sample."""
    assert least([Sample(5, 20, 3, 900), Sample(4, 21, 2, 901)]) == Sample(4, 20, 2, 900)
