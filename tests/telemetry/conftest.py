"""Metrics of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_client import events
from deepseek_client.telemetry import metrics


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """New metrics are installed for the test, and what the process had is as before after it."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(events, "listeners", ())
    monkeypatch.setattr(metrics, "_of_process", None)
    metrics.install()
    yield
    metrics._close()
