import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deepseek_client.ops.toggle as toggle
from deepseek_client import ConfigError, Settings
from deepseek_client.ops.toggle.rehearsal import Rehearsal
from deepseek_client.ops.toggle.survey import Survey

ROOT = Path(__file__).parents[2]
GIVE_UP_S = 5


@pytest.fixture(autouse=True)
def deployment(tmp_path, monkeypatch):
    """The current directory is an empty one, and no PORT is set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PORT", raising=False)
    return tmp_path


@pytest.mark.parametrize("port", ["abc", "0", "65536"])
def test_wrong_port(monkeypatch, capsys, port):
    """A PORT that is none is refused with 2; the environment's comes before that of .env."""
    Path(".env").write_text("PORT=6000\n")
    monkeypatch.setenv("PORT", port)
    assert toggle.main("disable") == 2
    assert capsys.readouterr().err == f"toggle-async: PORT={port!r}: need a whole number from 1 to 65535\n"


def test_port_of_the_file(capsys):
    """PORT of .env names the pid file that is looked for."""
    Path(".env").write_text("PORT=6000\n")
    assert toggle.main("disable") == 1
    assert "nothing runs here on port 6000: no .gunicorn-6000.pid" in capsys.readouterr().err


def test_one_at_a_time(capsys):
    """While another process has the directory, enable and disable are refused, and status is not."""
    directory = os.open(".", os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    for verb in ("enable", "disable"):
        assert toggle.main(verb) == 1
        assert capsys.readouterr().err == "toggle-async: another toggle-async is at work here\n"
    assert toggle.main("status") == 1
    assert "nothing runs here" in capsys.readouterr().err
    os.close(directory)
    assert toggle.main("enable") == 1
    assert "nothing runs here" in capsys.readouterr().err


class FakeServer:
    """A server whose worker 1 is replaced at the reload, as a test says."""

    pid, environ = 10, {}

    def __init__(self, then=(), alive=True, refuses=False):
        self.then, self.alive, self.refuses = set(then), alive, refuses
        self.reloads = 0

    def why_deaf(self):
        return ""

    def is_alive(self):
        return self.alive or not self.reloads

    def workers(self):
        return self.then if self.reloads else {1}

    def owner(self):
        return os.getuid(), os.getgid()

    def reload(self):
        if self.refuses:
            raise toggle.Refusal("cannot reload process 10: Operation not permitted")
        self.reloads += 1


@pytest.fixture
def disable(monkeypatch, capsys):
    """Disables where .env and worker 1 are enabled; then the modes are those: exit code, error, the value in .env."""

    def run(server, modes=None, before=None, trouble=""):
        Path(".env").write_text("USE_ASYNC_DEEPSEEK=1\n")
        before = {1: True} if before is None else before

        def ask(*_):
            return Survey(modes or {}, "") if server.reloads else Survey(before, trouble)

        monkeypatch.setattr(toggle, "Server", lambda port: server)
        monkeypatch.setattr(toggle, "rehearse", lambda *_: Rehearsal("127.0.0.1", 5000, 30))
        monkeypatch.setattr(toggle, "ask", ask)
        code = toggle.main("disable")
        error = capsys.readouterr().err
        assert error.count("\n") == (1 if code else 0)
        return code, error.strip(), Path(".env").read_text().strip()[-1]

    return run


@pytest.mark.parametrize(
    ("server", "modes", "code", "words", "value"),
    [
        ({"then": {2, 3}}, {2: False, 3: False}, 0, "", "0"),
        ({"then": {1, 2}}, {2: False}, 1, "old worker 1 did not leave within 40 s", "0"),
        ({"then": {2, 3}}, {2: False}, 1, "worker 3 did not answer within 40 s", "0"),
        ({"then": {2}}, {}, 1, "worker 2 did not answer within 40 s", "0"),
        ({"then": {2, 3}}, {2: False, 3: True}, 1, "worker 3 started with the old mode", "0"),
        ({"then": {2, 3}}, {2: True, 3: True}, 1, "workers 2 3 started with the old mode", "1"),
        ({"then": {1}}, {}, 1, "no new worker started within 40 s", "1"),
        ({"then": set(), "alive": False}, {}, 1, "the server ended during the reload", "1"),
        ({"refuses": True}, {}, 1, "cannot reload process 10", "1"),
    ],
    ids=["proved", "lingers", "silent", "all_silent", "mixed", "frozen", "no_reload", "ended", "not_ours"],
)
def test_verdict(disable, server, modes, code, words, value):
    """It is 0 only if all workers are new and report the mode; .env is put back if no new one can have taken it."""
    found, error, written = disable(FakeServer(**server), modes)
    assert (found, written, words in error) == (code, value, True)
    assert (".env is as it was" in error) == (value == "1" and "cannot reload" not in error)


def test_reload_is_over():
    """It is over when all old workers are gone and all new ones have answered, or when the server has ended."""
    server = FakeServer(then={1, 2})
    is_over = toggle._ended(server, {1})
    assert not is_over({1: True})
    server.reload()
    assert not is_over({1: True, 2: False})
    server.then = {2, 3}
    assert not is_over({2: False})
    assert is_over({2: False, 3: False})
    server.then = set()
    assert not is_over({})
    server.alive = False
    assert is_over({})


def test_cannot_ask(disable):
    """If nobody can be asked, nothing is written and nobody reloaded."""
    server = FakeServer()
    assert disable(server, before={}, trouble="/api/llm/status answers 404") == (
        1,
        "toggle-async: nothing could be proved: /api/llm/status answers 404",
        "1",
    )
    assert server.reloads == 0


def test_busy_before(disable):
    """Workers that are too busy to say how it was before do not keep a rollback waiting."""
    assert disable(FakeServer(then={2}), {2: False}, before={}) == (0, "", "0")


def test_application_that_does_not_load(deployment, monkeypatch, capsys):
    """With code that would end the server at a reload, nothing is written and nobody reloaded: one line says why."""
    server = FakeServer()
    monkeypatch.setattr(toggle, "Server", lambda port: server)
    (deployment / "deepseek_client").symlink_to(ROOT / "deepseek_client")
    (deployment / "webapp").mkdir()
    (deployment / "webapp" / "wsgi.py").write_text("raise RuntimeError('boom')\n")
    assert toggle.main("disable") == 1
    assert capsys.readouterr() == ("", "toggle-async: a reload would end the server: RuntimeError: boom\n")
    assert (server.reloads, Path(".env").exists()) == (0, False)


@pytest.mark.parametrize(
    "value", ["", " ", "1", "0", "true", "False", "YES", "no", "on", "Off", "2", "enabled"]
)
def test_words(value):
    """A value of .env means here what it means to the application; None is what that refuses."""
    Path(".env").write_text(f"{toggle.VARIABLE}='{value}'\n")
    try:
        expected = Settings.from_env({toggle.VARIABLE: value}).use_async
    except ConfigError:
        expected = None
    assert toggle._mode_in(toggle.EnvFile()) is expected


def test_application_is_not_loaded():
    """The switch itself imports nothing of the application that it switches, nor what that is made of."""
    code = "import sys, toggle; print(*{'webapp', 'deepseek_client', 'flask', 'requests'} & {*sys.modules})"
    path = {"PYTHONPATH": str(ROOT / "webapp")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=path, capture_output=True, text=True, timeout=GIVE_UP_S
    )
    assert (done.stdout, done.stderr) == ("\n", "")


def run(*arguments, python=(sys.executable,)):
    """Runs the script: exit code, standard output and error."""
    ended = subprocess.run(
        [*python, ROOT / "bin" / "toggle-async", *arguments],
        capture_output=True,
        text=True,
        timeout=6 * GIVE_UP_S,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_help():
    """--help is 0, names the verbs and the exit codes, and needs no package and no set-up."""
    code, output, error = run("--help", python=(sys.executable, "-I", "-S"))
    assert (code, error) == (0, "")
    assert [word for word in ("enable", "disable", "status", "Exit codes") if word not in output] == []


@pytest.mark.parametrize(
    "arguments",
    [[], ["on"], ["enable", "disable"], ["--port=1"], ["enable", "--wait", "0"], ["enable", "--wait", "x"]],
    ids=" ".join,
)
def test_wrong_arguments(arguments):
    """Wrong arguments are 2 and one line, and need no package and no set-up."""
    code, output, error = run(*arguments, python=(sys.executable, "-I", "-S"))
    assert (code, output, error.count("\n"), error[:14]) == (2, "", 1, "toggle-async: ")
