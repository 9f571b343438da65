"""The command that serves the console, as a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from support.patience import GIVE_UP_S
from support.ports import free_port

ROOT = Path(__file__).parents[3]


@pytest.fixture
def console(tmp_path):
    """Starts the command in an empty directory."""
    started = []

    def start(*arguments, **env):
        process = subprocess.Popen(
            [sys.executable, "-m", "deepseek_client", "console", *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(GIVE_UP_S)
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def address_of(process):
    """Where it serves, which it says in its first line."""
    line = process.stdout.readline()
    assert line.startswith("Console on http://127.0.0.1:"), process.stderr.read()
    return line.split()[-1]


def get(url):
    with requests.Session() as http:
        http.trust_env = False
        return http.get(url, timeout=GIVE_UP_S)


def test_without_a_server(console):
    """Where nothing runs it serves all the same, and says so."""
    address = address_of(console("--port", "0"))
    assert "No server of this directory has been found." in get(f"{address}/").text
    assert get(f"{address}/data").json()["now"]["has_server"] is False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(console, number):
    """SIGTERM and SIGINT end it with 0 and no traceback."""
    process = console("--port", "0")
    address_of(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=GIVE_UP_S)
    assert (process.returncode, errors) == (0, "")


TOLD_IN_A_CALLBACK = """
import signal, sys
from support.signalling import signal_in_a_callback
from webapp.console import command, watching

watching.Watch.start = lambda self: signal_in_a_callback(signal.{name})
sys.exit(command.main(["--port", "0"]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_in_a_callback(tmp_path, name):
    """A signal that comes in a callback, in which Python drops what a handler raises, ends the console, too."""
    command = [sys.executable, "-c", TOLD_IN_A_CALLBACK.format(name=name)]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=GIVE_UP_S)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_end_of_input(console):
    """With --exit-on-eof it ends when nobody holds its standard input any more."""
    process = console("--port", "0", "--exit-on-eof")
    address_of(process)
    process.stdin.close()
    assert process.wait(GIVE_UP_S) == 0


def test_port_in_use(console):
    """A port that is in use is an exit with 1 and one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = console("--port", str(port))
        output, errors = process.communicate(timeout=GIVE_UP_S)
    assert (process.returncode, output) == (1, "")
    assert errors == f"console: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (("--port", "x"), {}, "need a port from 0 to 65535"),
        (("--nothing",), {}, "unrecognized arguments"),
        ((), {"CONSOLE_PORT": "0"}, "CONSOLE_PORT='0': need a whole number from 1 to 65535"),
        (("--port", "0"), {"LLM_MAX_WORKERS": "five"}, "LLM_MAX_WORKERS='five': need a whole number"),
    ],
    ids=["port", "argument", "variable", "setting"],
)
def test_wrong_arguments_and_settings(console, arguments, env, words):
    """What is wrong is an exit with 2 and one line that names it."""
    process = console(*arguments, **env)
    output, errors = process.communicate(timeout=GIVE_UP_S)
    assert (process.returncode, output, errors.count("\n")) == (2, "", 1)
    assert words in errors


def test_variables_of_the_env_file(console, tmp_path):
    """The port and the place of the metrics may stand in `.env`, where the application finds them, too."""
    (tmp_path / "metrics" / "deepseek").mkdir(parents=True)
    port = free_port()
    (tmp_path / ".env").write_text(f"CONSOLE_PORT={port}\nPROMETHEUS_MULTIPROC_DIR={tmp_path}/metrics\n")
    assert address_of(console()) == f"http://127.0.0.1:{port}"
