"""Real processes: their start, their answers, and what is left of them."""

import os
import signal
import subprocess
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from support.patience import GIVE_UP_S
from support.ports import free_port

ROOT = Path(__file__).parents[2]
START_S = 30
"""Bound of a start, which may have to wait for other processes of a busy machine."""


def poll(fact, give_up_s=START_S):
    """Asks until the answer is true, and returns it; for processes that cannot tell us by themselves."""
    ends_at = time.monotonic() + give_up_s
    while True:
        answer = fact()
        if answer:
            return answer
        assert time.monotonic() < ends_at, f"not true within {give_up_s} s"
        time.sleep(0.02)


class Server:
    """A command in a session of its own, all of whose processes carry a mark in their environment."""

    def __init__(self, command, env, output, cwd, bundle=None):
        self.port = free_port()
        self.url = f"{'https' if bundle else 'http'}://127.0.0.1:{self.port}"
        self._bundle = bundle
        self.output = output
        self._mark = f"TEST_MARK={uuid.uuid4()}"
        # Explicit, and winning over a developer's .env, which the command reads too.
        whole = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "CONSOLE_PORT": "0",
            "WEB_CONCURRENCY": "2",
            "WEB_THREADS": "1",
            "DEEPSEEK_API_KEY": "",
            "DEEPSEEK_MODEL": "",
            "LLM_MAX_WORKERS": "5",
            "USE_ASYNC_DEEPSEEK": "1",
            "WEB_API_TOKEN": "",
            **env,
        }
        name, _, value = self._mark.partition("=")
        with output.open("wb") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**whole, name: value},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def answers(self):
        """Whether it serves; fails if it has ended instead."""
        assert self.process.poll() is None, self.output.read_text()
        try:
            return self.get("/health").status_code < 500  # an application of a test's own need not have it
        except requests.RequestException:
            return False

    def get(self, path):
        """The answer to a GET."""
        return self.ask("GET", path)

    def post(self, path, body):
        """The answer to a POST with a JSON body."""
        return self.ask("POST", path, json=body)

    def ask(self, method, path, **options):
        """The answer to a request on a connection of its own, so that any worker may take it and none keeps it."""
        with requests.Session() as http:
            http.trust_env = False
            return http.request(method, self.url + path, timeout=START_S, verify=self._bundle, **options)

    def processes(self):
        """Its processes that live: {pid: command line}, whatever session they are in."""
        alive = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    marked = self._mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:  # it ended, or belongs to someone else
                    continue
                if marked and line:  # a zombie has neither
                    alive[int(entry.name)] = line
        return alive

    def end(self, number=signal.SIGTERM):
        """Sends the signal to the first process and returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(START_S)

    def kill(self):
        """Ends what is left, by pid."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(GIVE_UP_S)


@pytest.fixture(scope="session")
def serving(tmp_path_factory):
    """Starts a command and gives its Server once it answers; nothing of it is left after the block.

    With a `bundle` it is one that speaks TLS, whose certificate is from an authority in that file.
    """

    @contextmanager
    def start(command, cwd=ROOT, bundle=None, **env):
        server = Server(command, env, tmp_path_factory.mktemp("server") / "output", cwd, bundle)
        try:
            poll(server.answers)
            yield server
        finally:
            server.kill()

    return start


@pytest.fixture(scope="session")
def eventually():
    """Waits until a function's answer is true."""
    return poll


# Of the module: while playwright runs no other test of its process can have an event loop.
@pytest.fixture(scope="module")
def browser():
    """One chromium."""
    from support.browsing import chromium

    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser):
    """Opens a page; afterwards nothing was asked of another origin, and no error was in the browser's console."""
    from support.browsing import opener

    with opener(browser) as opened:
        yield opened
