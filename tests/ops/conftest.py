"""A deployment of the test's own, and gunicorns that serve it."""

import os

import pytest
from support.gunicorns import Gunicorn


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
