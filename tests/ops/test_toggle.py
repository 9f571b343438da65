"""What the rollback does, and when it says that it is proved; its servers are made up."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import GIVE_UP_S

import deepseek_client.ops.toggle as toggle
from deepseek_client import ConfigError, Settings
from deepseek_client.ops.deployment import Worker
from deepseek_client.ops.env_file import VARIABLE, EnvFile
from deepseek_client.ops.toggle import report
from deepseek_client.telemetry import testimony

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("deployment")


class FakeCommand:
    """What would be rehearsed."""

    def __init__(self, **options):
        self.options = {"graceful_timeout": 30, "preload_app": False, "raw_env": [], **options}
        self.rehearsed = []

    def rehearse(self, **variables):
        self.rehearsed.append(variables)
        return self.options


class FakeServer:
    """A server whose worker 1 is replaced at the reload, as a test says: workers with their modes, None if silent."""

    pid = 10

    def __init__(self, then=None, before=None, alive=True, refuses=False, **options):
        self.modes = {1: "async"} if before is None else before
        self.then, self.alive, self.refuses = then or {}, alive, refuses
        self.reloads = 0
        self.command = FakeCommand(**options)

    def why_reload_is_ineffective(self):
        return ""

    def is_preloaded(self):
        return False

    def successor(self):
        return 0

    def is_alive(self):
        return self.alive or not self.reloads

    def told(self):
        return {
            Worker(pid, pid): mode and testimony.Testimony(pid, self.pid, mode, "threads", "then", (), 0)
            for pid, mode in (self.then if self.reloads else self.modes).items()
        }

    def workers(self):
        return {*self.told()}

    def owner(self):
        return os.getuid(), os.getgid()

    def reload(self):
        if self.refuses:
            raise toggle.Refusal("cannot reload process 10: Operation not permitted")
        self.reloads += 1


class FakeDeployment:
    """A directory with these servers and other processes."""

    def __init__(self, servers, others=()):
        self.servers, self.others, self.silent, self.doubts = servers, list(others), [], []
        self.directory = Path(".deepseek")
        self.directory.mkdir(exist_ok=True)


@pytest.fixture
def disable(monkeypatch, capsys):
    """Disables where .env says 1: the exit code, the error, the value in .env."""

    def run(*servers, others=(), pid=None):
        Path(".env").write_text("USE_ASYNC_DEEPSEEK=1\n")
        monkeypatch.setattr(toggle, "Deployment", lambda values: FakeDeployment(servers, others))
        code = toggle.main("disable", 0.2, pid)
        error = capsys.readouterr().err
        assert error.count("\n") == (1 if code else 0)
        return code, error.strip(), Path(".env").read_text().strip()[-1]

    return run


SYNC, ASYNC = "sync", "async"


@pytest.mark.parametrize(
    ("server", "code", "words", "value"),
    [
        ({"then": {2: SYNC, 3: SYNC}}, 0, "", "0"),
        ({"then": {1: ASYNC, 2: SYNC}}, 1, "old worker 1 did not leave within 0.2 s", "0"),
        ({"then": {2: SYNC, 3: None}}, 1, "worker 3 did not testify within 0.2 s", "0"),
        ({"then": {2: None}}, 1, "worker 2 did not testify within 0.2 s", "0"),
        ({"then": {2: SYNC, 3: ASYNC}}, 1, "worker 3 started with the old mode", "0"),
        ({"then": {2: SYNC, 3: "mixed"}}, 1, "worker 3 started with the old mode", "0"),
        ({"then": {2: ASYNC, 3: ASYNC}}, 1, "workers 2 3 started with the old mode", "1"),
        ({"then": {1: ASYNC}}, 1, "no new worker of gunicorn 10 started within 0.2 s", "1"),
        ({"then": {}}, 1, "no new worker of gunicorn 10 started within 0.2 s", "1"),
        ({"then": {}, "alive": False}, 1, "gunicorn 10 ended during the reload", "1"),
        ({"refuses": True}, 1, "cannot reload process 10", "1"),
        (
            {"preload_app": True},
            1,
            "gunicorn 10 was started with preload and hears no SIGHUP: restart it",
            "0",
        ),
        ({"raw_env": ["USE_ASYNC_DEEPSEEK=1"]}, 1, "sets USE_ASYNC_DEEPSEEK in raw_env", "1"),
        ({"before": {}}, 1, "gunicorn 10 has no worker, so that nothing can be proved", "1"),
    ],
    ids=[
        *(
            "proved",
            "lingers",
            "silent",
            "all_silent",
            "mixed",
            "two_modes",
            "frozen",
            "no_reload",
            "no_worker",
        ),
        *("ended", "not_ours", "preload", "raw_env", "empty"),
    ],
)
def test_verdict(disable, server, code, words, value):
    """It is 0 only if all workers are new and in the mode; .env is put back if no new one can have taken it."""
    server = FakeServer(**server)
    found, error, written = disable(server)
    assert (found, written, words in error) == (code, value, True)
    assert (".env is as it was" in error) == (value == "1" and server.reloads == 1)


def test_several_servers(disable):
    """All servers of the directory are reloaded, and one that is not new makes it unproved."""
    servers = [FakeServer(then={2: SYNC}), FakeServer(then={3: SYNC})]
    assert disable(*servers) == (0, "", "0")
    assert [server.reloads for server in servers] == [1, 1]
    code, error, value = disable(FakeServer(then={2: SYNC}), FakeServer(then={1: ASYNC}))
    assert (code, "old worker 1 did not leave" in error, value) == (1, True, "0")


def test_one_of_several_servers(disable):
    """--pid names the one that is meant; one that does not serve here is refused."""
    servers = [FakeServer(then={2: SYNC}), FakeServer(then={3: SYNC})]
    servers[1].pid = 11
    assert disable(*servers, pid=11) == (0, "", "0")
    assert [server.reloads for server in servers] == [0, 1]
    code, error, value = disable(*servers, pid=12)
    assert error == "toggle: process 12 is no gunicorn that serves this directory (those that are: 10, 11)"
    assert (code, value) == (1, "1")


def test_preloaded_server_is_not_reloaded(disable):
    """.env is written for the next start of a preloaded server, which alone is no reload; the others are reloaded."""
    preloaded, other = FakeServer(preload_app=True), FakeServer(then={2: SYNC})
    code, error, value = disable(preloaded, other)
    assert (code, value, preloaded.reloads, other.reloads) == (1, "0", 0, 1)
    assert error.startswith("toggle: gunicorn 10 was started with preload")
    assert ";" not in error


def test_server_that_is_no_gunicorn(disable):
    """Under another server .env is written, and the process that must be restarted is named, with 1."""
    other = testimony.Testimony(os.getpid(), 1, "async", "threads", "then", (), 0)
    code, error, value = disable(others=[other])
    assert (code, value) == (1, "0")
    assert error.startswith(f"toggle: process {os.getpid()} (")
    assert error.endswith("async, engine threads, since then: it hears no SIGHUP, restart it")


def test_status_of_what_is_no_gunicorn(deployment, monkeypatch, capsys):
    """status says that a restart makes such a process do what .env says, for no verb of ours does."""
    Path(".env").write_text("USE_ASYNC_DEEPSEEK=0\n")
    others = [
        testimony.Testimony(os.getpid(), 1, mode, "threads", "then", (), 0) for mode in ("async", "sync")
    ]
    monkeypatch.setattr(toggle, "Deployment", lambda values: FakeDeployment([], others))
    assert toggle.main("status") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"toggle: process {os.getpid()} (")
    assert error.endswith("async, engine threads, since then: it hears no SIGHUP, restart it")


def test_workers_that_never_testified(disable):
    """Workers without a testimony before do not keep a rollback back."""
    assert disable(FakeServer(before={1: None}, then={2: SYNC})) == (0, "", "0")


def test_rehearsal_comes_first(disable):
    """What a reload would do is tried with the value that is asked for, before anything is written."""
    server = FakeServer(then={2: SYNC})

    def refuse(**variables):
        server.command.rehearsed.append(variables)
        raise toggle.Refusal("a reload would end the server: boom")

    server.command.rehearse = refuse
    assert disable(server) == (1, "toggle: a reload would end the server: boom", "1")
    assert (server.command.rehearsed, server.reloads) == ([{VARIABLE: "0"}], 0)


def test_one_at_a_time(disable):
    """While another process switches, a second one is refused; the lock is a file that only its owner opens."""
    Path(".deepseek").mkdir(mode=0o700)
    lock = os.open(".deepseek/toggle.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    server = FakeServer(then={2: SYNC})
    assert disable(server) == (1, "toggle: another toggle is at work here", "1")
    os.close(lock)
    os.unlink(".deepseek/toggle.lock")
    assert disable(server)[0] == 0
    assert Path(".deepseek/toggle.lock").stat().st_mode & 0o777 == 0o600


def test_lock_on_the_directory(disable):
    """Whoever can read the directory can lock it, and keeps no rollback back by that."""
    directory = os.open(".", os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    assert disable(FakeServer(then={2: SYNC}))[0] == 0
    os.close(directory)


@pytest.mark.parametrize(
    "value", ["", " ", "1", "0", "true", "False", "YES", "no", "on", "Off", "2", "enabled"]
)
def test_words(value):
    """A value of .env means here what it means to the application; "wrong" is what that refuses."""
    Path(".env").write_text(f"{VARIABLE}='{value}'\n")
    try:
        expected = "async" if Settings.from_env({VARIABLE: value}).use_async else "sync"
    except ConfigError:
        expected = "wrong"
    assert report.mode_in(EnvFile()) == expected


def test_env_file_that_cannot_be_read(capsys):
    """A .env that cannot be read is refused with 2 and one line."""
    os.mkdir(".env")
    assert toggle.main("status") == 2
    assert capsys.readouterr() == ("", "toggle: .env cannot be read: it is not a file\n")


def test_nothing_runs(capsys):
    """Where nothing has testified nothing is done: one line says where it was looked for."""
    for verb in ("enable", "disable", "status"):
        assert toggle.main(verb) == 1
        said = "no application with DeepSeek(app) has testified in .deepseek, or none could"
        assert capsys.readouterr() == ("", f"toggle: nothing runs here: {said}\n")
    assert os.listdir() == []


@pytest.mark.parametrize(("verb", "value"), [("disable", "0"), ("enable", "1")])
def test_server_that_is_down(capsys, verb, value):
    """Where a server has run, .env is written also while it is down: a start that fails is what a rollback is for."""
    os.mkdir(".deepseek", mode=0o700)
    assert toggle.main(verb) == 1
    assert capsys.readouterr().err.startswith("toggle: nothing runs here, so that nothing is proved: .env ")
    assert EnvFile().values[VARIABLE] == value


def test_application_is_not_loaded():
    """The switch itself imports nothing of the application that it switches, nor what that is made of."""
    code = "import sys, deepseek_client.ops.toggle; print(*{'webapp', 'flask', 'requests'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    assert (done.stdout, done.stderr) == ("\n", "")
