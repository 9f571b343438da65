import logging
import os
import signal
import threading
from types import SimpleNamespace

import pytest
from support.patience import GIVE_UP_S

from deepseek_client.flask import gunicorn_conf, gunicorn_leaving, leaving

# A process with a call that does not end by itself, in a thread as a server's, and what becomes of it.
PROGRAM = """
import atexit, os, signal, sys, threading
from types import SimpleNamespace
from flask import Flask
# ignored by whoever runs the tests: nohup, or a script that has them in the background
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in signal.SIGHUP, signal.SIGQUIT:
    signal.signal(number, signal.SIG_DFL)
{before}
from deepseek_client.flask import DeepSeek

begun, told = threading.Event(), threading.Event()

class Blocked:
    is_deaf = False

    def ask(self):
        begun.set()
        threading.Event().wait(600)

def hang():
    import requests
    begun.set()
    requests.get("http://127.0.0.1:%d/" % listener.getsockname()[1], timeout=600)

import socket
listener = socket.create_server(("127.0.0.1", 0))
app = Flask("theirs")
llm = DeepSeek(app, client=SimpleNamespace(hang=hang, deaf=Blocked().ask))
app.add_url_rule("/", view_func=lambda: "x")

def call(name):
    try:
        llm.wait(getattr(llm.client, name + "_async")())
    except Exception as error:
        print(getattr(error, "code", error), flush=True)
        told.set()

def begin(name):
    threading.Thread(target=call, args=(name,), daemon=True).start()
    assert begun.wait(20)

atexit.register(print, "flushed", flush=True)
{then}
"""


@pytest.fixture
def leave(run_python):
    """Runs the program to its end, which a call must not hold for the 25 s of its deadline."""

    def run(then, before=""):
        done = run_python(PROGRAM.format(before=before, then=then))
        return done.returncode, done.stdout.split(), done.stderr

    return run


def test_end_of_the_interpreter(leave):
    """A call in flight is ended and told when the interpreter ends; other libraries do their last work after it."""
    code, said, _ = leave("begin('hang')")
    assert (code, sorted(said)) == (0, ["closing", "flushed"])


def test_python_without_the_hook(leave):
    """A Python that has no hook before its threads are waited for works, too."""
    without = "import concurrent.futures.thread; del threading._register_atexit"
    code, said, _ = leave("print(llm._part().settings.use_async)", without)
    assert (code, said) == (0, ["True", "flushed"])


def test_call_that_nothing_reaches(leave):
    """A call in code that no abort reaches is left behind, which a line says; other libraries' last work is done."""
    code, said, errors = leave("begin('deaf')")
    assert (code, said) == (0, ["closing", "flushed"])
    assert "a call does not end: the process leaves without waiting for it" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_default_action(leave, number):
    """Where a signal has its default action, the call is told first, and the process then dies by it as before."""
    code, said, _ = leave(f"begin('hang'); os.kill(os.getpid(), {number:d}); threading.Event().wait(20)")
    assert said[0] == "closing"
    assert code == -number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_default_action_without_a_call(leave, number):
    """Without a call in flight nothing comes before the default action."""
    code, _, _ = leave(f"os.kill(os.getpid(), {number:d}); threading.Event().wait(20)")
    assert code == -number


def test_interrupt_at_a_prompt(leave):
    """Somebody at Python's prompt interrupts what runs, and may go on calling."""
    code, said, _ = leave(
        """
sys.ps1 = ">>> "
try:
    begin('hang'); os.kill(os.getpid(), signal.SIGINT); threading.Event().wait(20)
except KeyboardInterrupt:
    print("told" if told.is_set() else "interrupted")
"""
    )
    assert (code, said[0]) == (0, "interrupted")


def test_handler_of_the_server(leave):
    """A handler that a server sets later is kept, and from the first request on ends the calls, too."""
    code, said, _ = leave(
        """
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
asked = threading.Thread(target=app.test_client().get, args=("/",))
asked.start(); asked.join()
begin('hang')
os.kill(os.getpid(), signal.SIGTERM)
assert stopped.wait(20) and told.wait(20)
print("goes on")
"""
    )
    assert (code, said) == (0, ["closing", "goes", "on", "flushed"])


def test_handler_that_was_there(leave):
    """A handler of SIGTERM that the application set before stays as it is until a request comes."""
    code, said, _ = leave(
        "print(signal.getsignal(signal.SIGTERM) is own)", "own = print; signal.signal(signal.SIGTERM, own)"
    )
    assert (code, said) == (0, ["True", "flushed"])


def test_lines_for_gunicorn(monkeypatch):
    """The lines that a deployment may put into its gunicorn configuration are a hook that hands the worker to us."""
    handed = []
    for name in ("leave_with_gunicorn", "bound_connections"):
        monkeypatch.setattr(f"deepseek_client.flask.{name}", handed.append)
    names = {}
    exec(gunicorn_conf(), names)
    names["post_worker_init"]("worker")
    assert handed == ["worker"] * 2
    assert not gunicorn_leaving.install()  # the tests run under no gunicorn


class Exited(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def watched(monkeypatch):
    """A worker whose watcher runs in a thread of the test's, and what was asked of the process."""
    read, write = os.pipe()
    to_worker = os.pipe()
    cfg = SimpleNamespace(graceful_timeout=0.01)
    worker = SimpleNamespace(alive=True, cfg=cfg, PIPE=to_worker, pid=1, log=logging.getLogger())
    ended, asked = threading.Event(), []

    def leave(code):
        asked.append("exit")
        raise Exited

    def run():
        with pytest.raises(Exited):
            gunicorn_leaving._Watcher(worker, read).run()

    monkeypatch.setattr(gunicorn_leaving, "_HANDLER_S", 0.01)
    monkeypatch.setattr(gunicorn_leaving, "_MARGIN_S", 0.01)
    monkeypatch.setattr(gunicorn_leaving, "_LEAVING_S", 0.01)
    monkeypatch.setattr(leaving, "end_calls_and_wait", lambda: ended.set() or True)
    judged = threading.Event()

    def send(number):
        asked.append(number)
        if number == signal.SIGWINCH:
            judged.set()

    monkeypatch.setattr(leaving, "signal_main_thread", send)
    monkeypatch.setattr(os, "_exit", leave)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield SimpleNamespace(
        worker=worker, tell=lambda number: os.write(write, bytes([number])), judged=judged, ended=ended,
        asked=asked, thread=thread,
    )  # fmt: skip
    assert not thread.is_alive()
    for descriptor in (read, write, *to_worker):
        os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signal_of_somebody_else(watched, number):
    """A signal whose handler does not run in the worker ends no call; one that tells the worker to leave does."""
    watched.tell(number)
    assert watched.judged.wait(GIVE_UP_S)
    assert not watched.ended.is_set()
    watched.worker.alive = False
    watched.tell(signal.SIGTERM)
    watched.thread.join(GIVE_UP_S)
    assert watched.ended.is_set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_worker_that_stays(watched, number):
    """A worker that does not leave once its calls have ended is told to, and then ended."""
    watched.worker.alive = False
    watched.tell(number)
    watched.thread.join(GIVE_UP_S)
    assert watched.asked == [signal.SIGQUIT, "exit"]
