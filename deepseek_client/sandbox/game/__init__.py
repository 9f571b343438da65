"""The game's rules, by which the sandbox answers a parse."""

from __future__ import annotations

__all__: list[str] = []
