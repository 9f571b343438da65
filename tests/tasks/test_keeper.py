"""What is kept running beside the web, with processes that a test owns."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from support.patience import GIVE_UP_S

from deepseek_client.tasks.keeper import Keeper, Kept


class FakeProcess:
    """A process that ends when the test says so."""

    def __init__(self):
        self.returncode = None
        self.was_told = False

    def poll(self):
        """The exit code, None while it runs."""
        return self.returncode

    def terminate(self):
        """Remembers it."""
        self.was_told = True


@pytest.fixture
def kept():
    """One kept process: the object, the processes that it has started, and the clock."""

    class Case:
        now = 0.0
        fails = None

        def __init__(self):
            self.started = []

        def start(self):
            if self.fails:
                raise self.fails
            self.started.append(FakeProcess())
            return self.started[-1]

    case = Case()
    case.kept = Kept("the worker", case.start, clock=lambda: case.now)
    return case


def ends(case, code, after_s=0.0):
    """Lets the running process end, and gives the pause until the next one."""
    case.now += after_s
    case.started[-1].returncode = code
    pause_s = case.kept.look()
    case.now += pause_s
    case.kept.look()
    return pause_s


def test_pause_doubles(kept, capsys):
    """A process that ends is started again after 0.1 s, then 0.2, up to 5, and each time a line says so."""
    kept.kept.look()
    pauses = [ends(kept, 1) for _ in range(9)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5])
    assert len(kept.started) == 10
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tasks: the worker has ended with 1: starting it again in 0.1 s"
    assert len(lines) == 9


def test_pause_begins_anew(kept, capsys):
    """After it has run for more than 10 s the pause is the shortest one."""
    kept.kept.look()
    assert [ends(kept, -9), ends(kept, -9), ends(kept, -9, after_s=11)] == pytest.approx([0.1, 0.2, 0.1])
    assert "has ended by signal 9" in capsys.readouterr().err


def test_replaced_at_once(kept, capsys):
    """A process that is replaced has a successor without a pause and without a line."""
    kept.kept.look()
    kept.kept.replace()
    assert kept.started[0].was_told
    assert ends(kept, 0) == 5  # it runs already: nothing is due
    assert len(kept.started) == 2
    assert capsys.readouterr().err == ""


def test_cannot_be_started(kept, capsys):
    """A process that cannot be started is tried again, and the line says why."""
    kept.fails = OSError(12, "Cannot allocate memory")
    assert kept.kept.look() == pytest.approx(0.1)
    assert "the worker cannot be started ([Errno 12] Cannot allocate memory)" in capsys.readouterr().err
    kept.fails, kept.now = None, 0.1
    kept.kept.look()
    assert len(kept.started) == 1


@pytest.fixture
def keeping(monkeypatch):
    """Runs a keeper of one sleeping process in this thread, and tells it something from another one."""
    set_handler, former_handler = signal.signal, signal.getsignal(signal.SIGCHLD)
    # Only this one: without it the end of a process is seen five seconds later.
    own = {signal.SIGCHLD: set_handler}
    monkeypatch.setattr(
        signal, "signal", lambda number, handler: own.get(number, lambda *_: 0)(number, handler)
    )
    started = []

    def start():
        command = [sys.executable, "-c", "print('up', flush=True); input()"]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        started[-1].stdout.readline()
        return started[-1]

    def run(tell, each_second=None):
        asked, telling = socket.socketpair()
        former = signal.set_wakeup_fd(-1)
        with asked, telling:
            teller = threading.Thread(target=tell, args=(telling, started))
            teller.start()
            Keeper(asked, [Kept("the worker", start)], GIVE_UP_S, each_second).run()
            teller.join(GIVE_UP_S)
        signal.set_wakeup_fd(former)
        return started

    yield run
    set_handler(signal.SIGCHLD, former_handler)
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "end", [lambda s: s.shutdown(socket.SHUT_WR), lambda s: s.close()], ids=["shutdown", "close"]
)
def test_ends_with_the_web(keeping, end):
    """The end of the stream, by whatever way, ends the worker and the keeper."""
    (worker,) = keeping(lambda telling, _: end(telling)) or [None]
    assert worker.returncode == -signal.SIGTERM


def test_is_called_each_second(keeping, monkeypatch):
    """What has to be done each second is done again and again."""
    monkeypatch.setattr("deepseek_client.tasks.keeper._EACH_S", 0.001)
    third = threading.Event()
    calls = []

    def count():
        calls.append(1)
        if len(calls) == 3:
            third.set()

    def tell(telling, _):
        assert third.wait(GIVE_UP_S)
        telling.close()

    keeping(tell, count)
    assert len(calls) >= 3


def test_replaces_the_worker(keeping):
    """A byte replaces the worker: the first one ends, and another one is there."""

    def tell(telling, started):
        telling.sendall(b"\n")
        ends_at = time.monotonic() + GIVE_UP_S
        while len(started) < 2 and time.monotonic() < ends_at:
            time.sleep(0.01)
        telling.close()

    first, second = keeping(tell)
    assert first.returncode == second.returncode == -signal.SIGTERM


KEPT = """\
import os, signal
from deepseek_client.tasks.keeper import keep_running

fork = os.fork

def run(begun):
    is_first, begun[0] = not begun[0], 1
    os.write(1, b"first\\n" if is_first else b"again\\n")  # at once: print may take two steps, and be killed between
    {body}
    return 0

def fork_and_signal():
    pid = fork()
    if {signalled}:
        os.kill(os.getpid(), signal.SIGTERM)
    return pid

os.fork = fork_and_signal
print("over", keep_running(run))
"""


@pytest.fixture
def kept_running():
    """Starts a process that keeps a function with this body running; one of the two may have a SIGTERM at once."""
    started = []

    def start(body, signalled="False"):
        command = [sys.executable, "-c", KEPT.format(body=body, signalled=signalled)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.parametrize(
    ("body", "how"),
    [("if is_first: os.kill(os.getpid(), 9)", "by signal 9"), ("assert not is_first", "with 1")],
    ids=["killed", "raises"],
)
def test_keeper_that_ends_is_started_again(kept_running, body, how):
    """A child that is killed, or raises, has a successor, and a line says so; one that ends well has none."""
    out, err = kept_running(body).communicate(timeout=GIVE_UP_S)
    assert out.split() == ["first", "again", "over", "0"]
    assert f"tasks: their keeper has ended {how}: starting it again in 0.1 s\n" in err


def test_keeper_that_is_told_to_end(kept_running):
    """SIGTERM is passed on to the child, which has no successor."""
    parent = kept_running("signal.pause()")
    assert parent.stdout.readline() == "first\n"
    parent.terminate()
    assert parent.communicate(timeout=GIVE_UP_S) == ("over 0\n", "")
    assert parent.returncode == 0


@pytest.mark.parametrize("signalled", ["pid", "not pid"], ids=["parent", "child"])
def test_signal_at_the_fork(kept_running, signalled):
    """A SIGTERM that comes with the fork ends the child, to whichever of the two it comes."""
    out, _ = kept_running("signal.pause()", signalled).communicate(timeout=GIVE_UP_S)
    assert out.removeprefix("first\n") == "over 0\n"


BEGINNING = """\
import os, sys
from deepseek_client.tasks import keeper

class Broker:
    url = "redis://127.0.0.1:1/0"

    def __init__(self, folder):
        pass

    def launch(self):
        {launch}

keeper.Broker = Broker
sys.exit(keeper.main())
"""


@pytest.mark.parametrize(
    ("launch", "word", "line"),
    [
        ("raise OSError(12, 'No memory')", "refused the queue's server cannot be started: [Errno 12] No memory\n", ""),
        ("assert False", "", "tasks: their keeper has ended with 1 before it had begun\n"),
        ("os.kill(os.getpid(), 9)", "", "tasks: their keeper has ended by signal 9 before it had begun\n"),
    ],
    ids=["no memory", "raises", "killed"],
)  # fmt: skip
def test_start_that_fails(tmp_path, launch, word, line):
    """A keeper that ends before it has told the URL is the last one, and whoever waits for its word knows at once."""
    ours, theirs = socket.socketpair()
    env = {**os.environ, "DEEPSEEK_RUN_DIR": str(tmp_path), "CELERY_BROKER_URL": ""}
    command = [sys.executable, "-c", BEGINNING.format(launch=launch)]
    with ours, subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, text=True, env=env) as process:
        theirs.close()
        ours.settimeout(GIVE_UP_S)
        try:
            with ours.makefile() as stream:
                assert stream.read() == word
        finally:
            process.terminate()
        err = process.communicate(timeout=GIVE_UP_S)[1]
    assert err.endswith(line)
    assert bool(err) == bool(line)
