"""What the doctor learns of the server: one that runs, what ours would be told, and whether it is in a container."""

import os
from pathlib import Path

import pytest
from support.diagnoses import KEY, TOKEN, codes
from support.gunicorns import Gunicorn

from deepseek_client.ops.doctor import examine, read
from deepseek_client.ops.doctor import situation as looked_at

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def clone(alone):
    """The current directory holds our own application."""
    for name in ("webapp", "deepseek_client"):
        Path(name).symlink_to(ROOT / name)


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({"WEB_API_TOKEN": TOKEN}, ""),
        ({"PORT": "http"}, "unreadable_setting"),
        ({"GUNICORN_CMD_ARGS": "--timeout x"}, "unreadable_setting"),
        ({"GUNICORN_CMD_ARGS": "--timeout '30"}, "unreadable_setting"),
        ({"HOST": "0.0.0.0"}, "public_without_token"),
        ({"GUNICORN_CMD_ARGS": "--bind unix:/run/x --bind :80"}, "public_without_token"),
        ({"GUNICORN_CMD_ARGS": "--timeout 25"}, "worker_timeout"),
        ({"LLM_DEADLINE_S": "300", "LLM_READ_TIMEOUT_S": "9"}, "proxy_timeout"),
        ({"WEB_THREADS": "6"}, "threads_over_workers"),
        ({"GUNICORN_CMD_ARGS": "--preload"}, "preload"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_our_own_server(monkeypatch, env, code):
    """In a clone it knows what gunicorn would be told, by our file and by GUNICORN_CMD_ARGS; nothing is changed."""
    for name, value in {"DEEPSEEK_API_KEY": KEY, **env}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ), sorted(os.listdir("."))
    (situation,) = read()
    assert [finding.code for finding in examine(situation)] == ([code] if code else [])
    assert (dict(os.environ), sorted(os.listdir("."))) == before
    assert os.listdir("tmp") == []


@pytest.mark.usefixtures("clone")
def test_env_file_that_is_a_fifo():
    """A .env that nobody writes to is named, and gunicorn's file, which would wait for it, is left alone."""
    os.mkfifo(".env")
    assert "unreadable_setting" in {finding.code for finding in examine(read()[0])}


def test_application_of_the_same_name():
    """A stranger's webapp/gunicorn.conf.py is not executed."""
    Path("webapp").mkdir()
    Path("webapp", "gunicorn.conf.py").write_text("raise SystemExit(1)")
    (situation,) = read()
    assert (situation.is_webapp, situation.server) == (False, None)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a server is found by /proc")
def test_running_server(tmp_path, monkeypatch):
    """Where a gunicorn runs, its own options and its own environment count, whoever said them and where."""
    Path("own.py").write_text("timeout = 20\nthreads = 8\nbind = '0.0.0.0:1'\n")
    env = {"GUNICORN_CMD_ARGS": "--graceful-timeout 10", "DEEPSEEK_API_KEY": KEY, "LLM_MAX_WORKERS": "7"}
    server = Gunicorn(tmp_path, "-c", "own.py", "-k", "gthread", **env)
    monkeypatch.setenv("LLM_MAX_WORKERS", "nonsense of this shell")
    try:
        server.wait_until_up()
        (situation,) = read()
    finally:
        server.end()
    told = situation.server
    assert (told.timeout, told.graceful_timeout, told.threads, told.worker_class) == (20, 10, 8, "gthread")
    assert situation.masters == {server.pid}
    assert codes(examine(situation)) == {("graceful_timeout", "warning"), ("threads_over_workers", "hint")}


@pytest.mark.parametrize(
    ("marks", "cgroups", "expected"),
    [
        (("/nowhere", "/"), None, True),
        (("/nowhere",), "0::/kubepods.slice/pod1\n", True),
        (("/nowhere",), "12:cpu:/docker/0a1b\n", True),
        (("/nowhere",), "0::/init.scope\n", False),
        (("/nowhere",), None, False),
    ],
    ids=["mark", "kubernetes", "docker", "machine", "nothing_to_read"],
)
def test_container(monkeypatch, tmp_path, marks, cgroups, expected):
    """A container is known by Docker's or Podman's mark, or by the group of its first process."""
    file = tmp_path / "cgroup"
    if cgroups is not None:
        file.write_text(cgroups)
    monkeypatch.setattr(looked_at, "_OF_CONTAINERS", marks)
    monkeypatch.setattr(looked_at, "_CGROUPS", file)
    (situation,) = read()
    assert situation.is_container is expected
