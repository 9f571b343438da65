import os
from pathlib import Path

import pytest

from deepseek_client.ops import deployment as server_module
from deepseek_client.ops.deployment import Server
from deepseek_client.ops.env_file import VARIABLE
from deepseek_client.ops.refusal import Refusal

GUNICORN = "/venv/bin/python /venv/bin/gunicorn -c webapp/gunicorn.conf.py webapp.wsgi:app"


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Adds processes to a /proc of the test's own, and names process 10 in the pid file of the current directory."""
    monkeypatch.chdir(tmp_path)
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "stat").touch()
    (proc / "uptime").touch()
    monkeypatch.setattr(server_module, "_PROC", proc)

    def add(pid, parent, command=GUNICORN, state="S", cwd=".", **environ):
        entry = proc / str(pid)
        entry.mkdir()
        (entry / "stat").write_text(f"{pid} (odd) name) {state} {parent} {pid} 0\n")
        words = [command] if command.startswith("gunicorn: ") else command.split()
        (entry / "cmdline").write_text("".join(f"{word}\0" for word in words))
        (entry / "environ").write_text("".join(f"{name}={value}\0" for name, value in environ.items()))
        (entry / "cwd").symlink_to(tmp_path / cwd)

    Path(".gunicorn-5000.pid").write_text("10\n")
    return add


def test_workers(process):
    """Workers are the master's living children with its command line, or the title that setproctitle gives them."""
    process(10, 1)
    process(11, 10)
    process(12, 10, "gunicorn: worker [webapp.wsgi:app]")
    process(13, 10, "/venv/bin/python -m deepseek_client.sandbox")
    process(14, 10, state="Z")
    process(15, 11)
    process(16, 1)
    assert Server(5000).workers() == {11, 12}


@pytest.mark.parametrize("command", [GUNICORN, "/r/.venv/bin/python /r/bin/serve"])
def test_master(process, command):
    """gunicorn and bin/serve in this directory are the server, with their variables."""
    process(10, 1, command, PORT="5000", EMPTY="")
    server = Server(5000)
    assert (server.pid, server.environ, server.why_deaf()) == (10, {"PORT": "5000", "EMPTY": ""}, "")
    assert server.is_alive()


def test_renamed_master(process, monkeypatch):
    """gunicorn with setproctitle, which loses its variables in /proc, is taken to have ours, without the switch."""
    process(10, 1, "gunicorn: master [webapp.wsgi:app]")
    monkeypatch.setenv("HOST", "127.0.0.2")
    monkeypatch.setenv(VARIABLE, "1")
    server = Server(5000)
    assert (server.environ["HOST"], server.why_deaf()) == ("127.0.0.2", "")


@pytest.mark.parametrize(
    "options", [{"cwd": ".."}, {"command": "/usr/bin/python other.py"}], ids=["directory", "command"]
)
def test_someone_else(process, options):
    """A process of another directory, or another program, is not the server, whatever the pid file says."""
    process(10, 1, **options)
    with pytest.raises(Refusal, match="pid is stale, process 10 is something else"):
        Server(5000)


def test_successor(process):
    """While a master that USR2 started takes over, nothing is done."""
    process(10, 1)
    Path(".gunicorn-5000.pid.2").write_text("20\n")
    assert Server(5000).pid == 10
    process(20, 10)
    with pytest.raises(Refusal, match="process 20 is taking over from 10"):
        Server(5000)


def test_foreign_user(process, monkeypatch):
    """A server whose /proc entries may not be read asks for its user."""
    process(10, 1)

    def deny(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os.path, "samefile", deny)
    with pytest.raises(Refusal, match="process 10 belongs to someone else: run this as its user"):
        Server(5000)


def test_without_proc(process, monkeypatch):
    """A system without /proc is refused in one sentence."""
    monkeypatch.setattr(server_module, "_PROC", Path("nowhere"))
    with pytest.raises(Refusal, match="need Linux's /proc"):
        Server(5000)


@pytest.mark.parametrize(
    ("option", "environ", "why"),
    [
        ("", {VARIABLE: "0"}, "USE_ASYNC_DEEPSEEK='0' is in the environment"),
        ("", {VARIABLE: ""}, "USE_ASYNC_DEEPSEEK='' is in the environment"),
        (f" -e {VARIABLE}=1", {}, "'USE_ASYNC_DEEPSEEK=1' is in the command line"),
        (f" -e{VARIABLE}=1", {}, "'-eUSE_ASYNC_DEEPSEEK=1' is in the command line"),
        (f" --env={VARIABLE}=1", {}, "'--env=USE_ASYNC_DEEPSEEK=1' is in the command line"),
        ("", {"GUNICORN_CMD_ARGS": f"--env {VARIABLE}=1"}, "is in the command line"),
        (" --preload", {}, "--preload"),
        ("", {"GUNICORN_CMD_ARGS": "--workers 3 --preload"}, "--preload"),
    ],
)
def test_deaf(process, option, environ, why):
    """What comes before .env, or freezes it, is seen in the server's environment and command line."""
    process(10, 1, GUNICORN + option, **environ)
    assert why in Server(5000).why_deaf()
