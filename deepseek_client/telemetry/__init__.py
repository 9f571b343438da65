"""What operators see: log lines and metrics."""

from __future__ import annotations

__all__: list[str] = []
