"""An application of somebody else's with DeepSeek, and programs in an interpreter of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from support.clients import TheirClient
from support.patience import GIVE_UP_S

from deepseek_client.flask import DeepSeek

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in an empty directory until it ends."""

    def run(script: str, **env: str) -> subprocess.CompletedProcess[str]:
        whole = {**os.environ, "PYTHONPATH": str(ROOT), **env}
        return subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env=whole,
            capture_output=True,
            text=True,
            timeout=GIVE_UP_S,
        )

    return run


@pytest.fixture
def llm() -> DeepSeek:
    """The extension over their client."""
    return DeepSeek(client=TheirClient())


@pytest.fixture
def app(llm: DeepSeek, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """Their application, in a directory without `.env`."""
    monkeypatch.chdir(tmp_path)
    app = Flask("theirs")
    llm.init_app(app)
    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """The application's client."""
    return app.test_client()
