"""Commands for whoever operates a deployment."""

from __future__ import annotations

__all__: list[str] = []
