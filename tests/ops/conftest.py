"""A deployment of the test's own, gunicorns that serve it, and what the doctor finds there."""

import os
import re
import tempfile
from dataclasses import replace

import pytest
from support.diagnoses import KEY
from support.gunicorns import Gunicorn

from deepseek_client.ops.doctor import Server, examine, read
from deepseek_client.ops.doctor import situation as looked_at

OURS = re.compile("HOST|PORT|LOG_FORMAT|NETRC|(WEB|GUNICORN|CELERY)_.*")


@pytest.fixture
def deployment(tmp_path, monkeypatch):
    """The current directory is an empty one, and no variable moves its testimonies."""
    root = tmp_path / "deployment"
    root.mkdir()
    monkeypatch.chdir(root)
    for name in ("DEEPSEEK_RUN_DIR", "PORT", "USE_ASYNC_DEEPSEEK"):
        monkeypatch.delenv(name, raising=False)
    return root


@pytest.fixture
def gunicorn(deployment):
    """Starts gunicorns in the deployment, or in `root`, and ends them with the test."""
    if not os.path.isdir("/proc/self"):
        pytest.skip("a server is proved by /proc")
    started = []

    def start(*options, root=deployment, **settings):
        started.append(Gunicorn(root, *options, **settings))
        started[-1].wait_until_up()
        return started[-1]

    yield start
    for server in started:
        server.end()


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """An empty directory, and an environment without settings or what an earlier server left."""
    for name in list(os.environ):
        if OURS.fullmatch(name):
            monkeypatch.delenv(name)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(looked_at, "_OF_CONTAINERS", ())  # the tests may run in one
    monkeypatch.setattr(looked_at, "_CGROUPS", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def situation_for(alone, monkeypatch):
    """The situation of our application with these variables in the process environment, a key, and a server."""

    def find(hosts=1, server=(), is_webapp=True, is_container=False, **env):
        for name, value in {"DEEPSEEK_API_KEY": KEY, **env}.items():
            monkeypatch.setenv(name, value)
        (situation,) = read(hosts)
        told = None if server is None else Server(**dict(server))
        return replace(situation, server=told, is_webapp=is_webapp, is_container=is_container)

    return find


@pytest.fixture
def findings_for(situation_for):
    """The findings in such a situation."""
    return lambda *hosts, **options: examine(situation_for(*hosts, **options))
