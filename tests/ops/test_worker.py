"""`deepseek-client worker`: what it refuses, how it waits for its server, and how it leaves."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
from support.patience import GIVE_UP_S
from support.ports import free_port

from deepseek_client.__main__ import main
from deepseek_client.ops import worker
from deepseek_client.tasks.broker import Broker

ROOT = Path(__file__).parents[2]
PASSWORD = "PASSWORD-0123456789"


@pytest.fixture
def broker(tmp_path):
    """A server for the queue that does not run yet."""
    own = Broker(tmp_path / "queue")
    yield own
    own.close()


@pytest.fixture
def launch(broker):
    """Starts the server and waits until it answers; ends it with the test."""
    started = []

    def start():
        started.append(broker.launch())
        broker.wait_until_ready(started[-1])

    yield start
    for process in started:
        broker.stop(process)


class Worker:
    """The command as a process, whose lines on stderr a test can wait for."""

    def __init__(self, directory, **env):
        whole = {"PATH": os.environ["PATH"], "HOME": str(directory), "PYTHONPATH": str(ROOT), **env}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deepseek_client", "worker"],
            cwd=directory,
            env=whole,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._alarm = threading.Timer(GIVE_UP_S, self.process.kill)
        self._alarm.start()

    def lines_until(self, pattern):
        """The lines up to the one in which the pattern is; it is killed when that does not come."""
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if re.search(pattern, line):
                return lines
        raise AssertionError("".join(lines))

    def end(self, number=signal.SIGTERM):
        """Sends the signal: the exit code and the rest of stderr."""
        self.process.send_signal(number)
        rest = self.process.stderr.read()
        return self.process.wait(GIVE_UP_S), rest

    def close(self):
        """Kills it if it runs."""
        self._alarm.cancel()
        self.process.kill()
        self.process.stderr.close()
        self.process.wait(GIVE_UP_S)


@pytest.fixture
def run(tmp_path):
    """Starts workers in the test's folder."""
    started = []

    def start(**env):
        started.append(Worker(tmp_path, **env))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def refused(monkeypatch, deployment, capsys):
    """Runs the command in this process with what it must refuse: the exit code and its only line."""

    def ask(**env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        code = main(["worker"])
        (line,) = capsys.readouterr().err.splitlines()
        return code, line

    return ask


def test_no_server_named(refused):
    """Without CELERY_BROKER_URL it ends with 2 and says what it needs."""
    code, line = refused()
    assert code == 2
    assert line.startswith("worker: CELERY_BROKER_URL is not set: need ")


@pytest.mark.parametrize("url", ["amqp://:PASSWORD-0123456789@host/", "localhost:6379"])
def test_wrong_address(refused, url):
    """An address that is none ends it with 2; the line does not show it, for it may hold a password."""
    code, line = refused(CELERY_BROKER_URL=url)
    assert code == 2
    assert line.startswith("worker: CELERY_BROKER_URL (not shown): need redis://")


def test_extra_is_missing(refused, monkeypatch):
    """Without the packages of the extra it ends with 1 and says how to install them."""
    monkeypatch.setattr(worker, "_EXTRA", ("celery_of_nobody", "redis", "redis_of_nobody"))
    code, line = refused(CELERY_BROKER_URL="redis://127.0.0.1:1/0")
    assert (code, line) == (
        1,
        "worker: need celery_of_nobody and redis_of_nobody: pip install 'deepseek-client-async[tasks]'",
    )


def test_wrong_password(refused, broker, launch):
    """A password that the server refuses ends it with 1, for waiting would not help; the line does not show it."""
    launch()
    url = re.sub(":[^:@]+@", f":{PASSWORD}@", broker.url)
    code, line = refused(CELERY_BROKER_URL=url)
    place = f"127.0.0.1:{broker.port}"
    assert (code, line) == (
        1,
        f"worker: the queue's server at {place} refuses the password of CELERY_BROKER_URL",
    )


def test_server_that_comes_later(run, broker, launch):
    """A server that is away is waited for, which one line says; when it comes, another line does, and work begins."""
    process = run(CELERY_BROKER_URL=broker.url)
    place = f"127.0.0.1:{broker.port}"
    (line,) = process.lines_until("waiting")
    assert line.startswith(f"worker: waiting for the queue's server at {place}: ")
    launch()
    assert process.lines_until("answers") == [f"worker: the queue's server at {place} answers\n"]
    process.lines_until("ready")
    assert process.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_while_it_waits(run, broker, number):
    """A signal while it waits for the server ends it with 0, without a word."""
    process = run(CELERY_BROKER_URL=broker.url)
    process.lines_until("waiting")
    assert process.end(number) == (0, "")


TOLD_WHILE_CELERY_IS_IMPORTED = """
import signal, sys
from support.signalling import signal_in_a_callback

signal_in_a_callback(signal.{name})
sys.exit("it goes on")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_told_to_end_while_it_starts(tmp_path, run, broker, launch, name):
    """A signal in a callback, in which Python drops what a handler raises, ends a worker that starts, too."""
    launch()
    (tmp_path / "celery").mkdir()
    (tmp_path / "celery" / "__init__.py").write_text(TOLD_WHILE_CELERY_IS_IMPORTED.format(name=name))
    process = run(
        CELERY_BROKER_URL=broker.url, PYTHONPATH=os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests")))
    )
    assert process.process.stderr.read() == ""
    assert process.process.wait(GIVE_UP_S) == 0


def test_metrics_on_a_port_of_its_own(run, broker, launch, unused_port):
    """WORKER_METRICS shows the worker's metrics there."""
    launch()
    process = run(CELERY_BROKER_URL=broker.url, WORKER_METRICS=f"127.0.0.1:{unused_port}")
    process.lines_until("ready")
    with requests.Session() as http:
        http.trust_env = False
        text = http.get(f"http://127.0.0.1:{unused_port}/metrics", timeout=GIVE_UP_S).text
    assert "deepseek_pool_workers" in text
    assert process.end()[0] == 0


@pytest.fixture
def unused_port():
    """A port on which nobody listens."""
    return free_port()


def test_call_that_does_not_end(tmp_path):
    """A worker whose calls do not end leaves in time all the same, with 1, and a line says so."""
    code = """
import logging, os, signal, threading
from deepseek_client.ops.worker import _bounded_leaving
logging.basicConfig()
signal.signal(signal.SIGTERM, lambda *_: None)  # as a handler of Celery, which waits
with _bounded_leaving(0.01):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP_S
    )
    assert ended.returncode == 1
    assert "calls still run 0.01 s after the worker was told to end: leaving them" in ended.stderr


def test_calls_that_end(capsys):
    """A worker that has been told to end and has ended in time is left alone, and nothing waits any more."""
    former = signal.signal(signal.SIGTERM, lambda *_: None)
    with worker._bounded_leaving(GIVE_UP_S):
        os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, former)
    assert capsys.readouterr().err == ""
    assert "leaving" not in {thread.name for thread in threading.enumerate()}
