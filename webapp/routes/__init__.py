"""The routes of the HTTP contract."""

from __future__ import annotations

__all__: list[str] = []
