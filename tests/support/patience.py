"""How long a test waits for what must happen."""

from __future__ import annotations

__all__ = ["GIVE_UP_S"]

GIVE_UP_S = 60
"""Bound of every wait: long on a busy machine; only a test that hangs waits for so long."""
