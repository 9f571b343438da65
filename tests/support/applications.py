"""Clients of new applications, with the pool and without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient

from deepseek_client import Settings
from webapp.app import create_app

use_async = pytest.mark.parametrize("use_async", [True, False], ids=["async_enabled", "async_disabled"])


def client_of(settings: Settings, **changes: Any) -> FlaskClient:
    """A client of a new application whose settings differ in this: its breaker is closed, its budget full."""
    return create_app(replace(settings, **changes)).test_client()
