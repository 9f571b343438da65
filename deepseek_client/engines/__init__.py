"""What runs an attempt, and how many run at once."""

from __future__ import annotations

__all__: list[str] = []
