"""A client of the application, and a look at what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from deepseek_client import Settings
from deepseek_client.sandbox import RunningSandbox
from webapp.app import create_app


@pytest.fixture
def client(settings: Settings) -> FlaskClient:
    """A client of the app over the sandbox."""
    return create_app(settings).test_client()


@pytest.fixture
def refused(client: FlaskClient, sandbox: RunningSandbox) -> Callable[..., None]:
    """Sends a body and checks that it was refused with this message and that nothing went to the API."""

    def check(route: tuple[str, str], body: Any, message: str, *, status: int = 400, **options: Any) -> None:
        method, path = route
        if body is not None:
            options["data"] = body if isinstance(body, (bytes, str)) else json.dumps(body)
        answer = client.open(path, method=method, **options)
        assert answer.get_json() == {"error": message, "code": "invalid_request", "text": ""}
        assert answer.status_code == status
        assert sandbox.stats()["requests"] == 0

    return check
