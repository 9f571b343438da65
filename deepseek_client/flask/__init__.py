"""The joint to Flask: what any application of it may use, whatever its routes are."""

from __future__ import annotations

__all__: list[str] = []
