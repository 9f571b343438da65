"""The rollback of real servers, by the installed command."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.gunicorns import APPLICATION, environment, poll
from support.patience import GIVE_UP_S

import deepseek_client.ops.toggle as toggle

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("deployment")


def run(*arguments):
    """Runs the installed command in the deployment: exit code, lines of output, error."""
    done = subprocess.run(
        [sys.executable, "-m", "deepseek_client", "toggle", *arguments],
        env=environment(Path(".").absolute()),
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


CONFIGURATION = "bind = 'unix:own.sock'\nworkers = 2\nthreads = 2\n"


def test_any_deployment(gunicorn):
    """A gunicorn with its own configuration, on a socket, without a pid file or a route, is switched and proved."""
    Path("own.conf.py").write_text(CONFIGURATION)
    Path(".env").write_text("# ours\nUSE_ASYNC_DEEPSEEK=1 # why\n")
    server = gunicorn("-c", "own.conf.py", workers=2)
    old = server.workers()
    code, lines, error = run("disable")
    new = server.workers()
    assert (code, error, len(new), new & old) == (0, "", 2, set())
    listed = " ".join(map(str, sorted(new)))
    assert lines[1] == f"after:  .env sync (USE_ASYNC_DEEPSEEK is '0'), workers {listed} sync"
    assert Path(".env").read_text() == "# ours\nUSE_ASYNC_DEEPSEEK=0 # why\n"
    assert {said.mode for said in server.testimonies()} == {"sync"}


def test_configuration_that_loads_env_file(gunicorn):
    """Where gunicorn's configuration loads .env into the environment, where it stays, each switch is proved."""
    Path("own.conf.py").write_text(f"from dotenv import load_dotenv\nload_dotenv()\n{CONFIGURATION}")
    Path(".env").write_text("USE_ASYNC_DEEPSEEK=1\n")
    Path("app.py").write_text(
        "from flask import Flask\nfrom deepseek_client.flask import DeepSeek\napp = Flask(__name__)\nDeepSeek(app)\n"
    )
    server = gunicorn("-c", "own.conf.py", workers=2)
    for verb, mode in (("disable", "sync"), ("enable", "async"), ("disable", "sync")):
        code, _, error = run(verb)
        assert (code, error) == (0, "")
        assert {said.mode for said in server.testimonies()} == {mode}


def test_status(gunicorn):
    """status has a line for each worker, and is 0 only while all of them do what .env says."""
    server = gunicorn(workers=2)
    code, lines, error = run("status")
    assert (code, lines[0], error) == (0, ".env async (USE_ASYNC_DEEPSEEK not set)", "")
    since = {said.pid: said.since for said in server.testimonies()}
    assert lines[1:] == [f"worker {pid}: async, engine threads, since {since[pid]}" for pid in sorted(since)]
    Path(".env").write_text("USE_ASYNC_DEEPSEEK=off\n")
    code, again, error = run("status")
    assert (code, again[1:]) == (1, lines[1:])
    assert error == "toggle: the workers do not do what .env says: disable makes them\n"


def test_worker_without_testimony(gunicorn):
    """A worker that could not testify is not taken for proved, whatever the others say."""
    silent, other = sorted(gunicorn(workers=2).workers())
    (file,) = Path(".deepseek").glob(f"*-{silent}-*.json")
    file.unlink()
    code, lines, error = run("status")
    assert (code, lines[1]) == (1, f"worker {silent}: no testimony")
    assert lines[2].startswith(f"worker {other}: async")
    assert error == (
        "toggle: not every worker has testified in .deepseek: it does so at its next request, or its log says why\n"
    )


def test_pipe_in_place_of_a_testimony(gunicorn):
    """A named pipe where a testimony was holds nobody up: its gunicorn is named, and what to do."""
    server = gunicorn()
    (file,) = Path(".deepseek").glob("*.json")
    aside = file.rename("aside.json")
    os.mkfifo(file)
    try:
        said = f"toggle: gunicorn {server.pid} runs here and has not testified in .deepseek: send each of its workers"
        for arguments in (["disable"], ["status"], ["status", "--pid", str(server.pid)]):
            code, lines, error = run(*arguments)
            assert (code, lines, error.count("\n"), error.startswith(said)) == (1, [], 1, True)
    finally:
        aside.rename(file)


def test_silent_server_beside_another(gunicorn):
    """A gunicorn that has not testified keeps the rollback of another back no more than it is kept quiet."""
    server, silent = gunicorn(), gunicorn()
    (pid,) = silent.workers()
    next(Path(".deepseek").glob(f"*-{pid}-*.json")).unlink()
    code, lines, error = run("disable")
    assert (code, error) == (0, "")
    assert lines[1].startswith(f"gunicorn {silent.pid} runs here and has not testified")
    assert {said.mode for said in server.testimonies()} == {"sync"}
    os.kill(pid, signal.SIGTERM)
    poll(silent.workers)


def test_application_that_does_not_load(gunicorn):
    """With code that would end the server at a reload, nothing is written and nobody reloaded: one line says why."""
    server = gunicorn()
    old = server.workers()
    Path("app.py").write_text("raise RuntimeError('boom')\n")
    assert run("disable") == (1, [], "toggle: a reload would end the server: RuntimeError: boom\n")
    assert (server.workers(), Path(".env").exists()) == (old, False)


def test_frozen_unnoticed(gunicorn):
    """A server that is frozen in a way that nobody can see testifies for the old mode, and .env is put back."""
    Path(".env").write_text("USE_ASYNC_DEEPSEEK=1\n")
    frozen = "import os\nos.environ['USE_ASYNC_DEEPSEEK'] = '1'\n"
    Path("app.py").write_text(frozen + APPLICATION)
    server = gunicorn()
    old = server.workers()
    code, _, error = run("disable")
    (new,) = server.workers()
    assert new not in old
    assert error.startswith(f"toggle: worker {new} started with the old mode: ")
    assert error.endswith("; .env is as it was\n")
    assert (code, Path(".env").read_text()) == (1, "USE_ASYNC_DEEPSEEK=1\n")


def test_real_server_that_is_no_gunicorn(deployment):
    """Under a server that hears no SIGHUP .env says the new mode, and the exit code that nothing is proved."""
    Path("app.py").write_text(APPLICATION)
    code = "import app, sys; print(1, flush=True); sys.stdin.readline()"
    env = environment(deployment, PYTHONPATH=f"{ROOT}:.")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=env, **pipes) as server:
        assert server.stdout.readline() == b"1\n"
        found, lines, error = run("disable")
        server.communicate(b"\n")
    assert (found, lines[-1]) == (1, "after:  .env sync (USE_ASYNC_DEEPSEEK is '0'), no worker")
    assert error.startswith(f"toggle: process {server.pid} (")
    assert error.endswith(": it hears no SIGHUP, restart it\n")
    assert error.count("\n") == 1


def test_takeover(gunicorn):
    """While a master that USR2 started takes over, nothing is done."""
    server = gunicorn()
    os.kill(server.pid, signal.SIGUSR2)
    poll(lambda: len(toggle.Deployment({}).servers) == 2)
    (new,) = [each for each in toggle.Deployment({}).servers if each.pid != server.pid]
    try:
        code, lines, error = run("disable")
        assert (code, lines) == (1, [])
        assert error == (
            f"toggle: process {new.pid} is taking over from {server.pid} (USR2): end one of them first\n"
        )
    finally:
        for pid in (new.pid, *(worker.pid for worker in new.workers())):
            os.kill(pid, signal.SIGKILL)
