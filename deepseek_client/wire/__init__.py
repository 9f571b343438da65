"""Below the client: shared connections, what really happened on them, and how to end it."""

from __future__ import annotations

__all__: list[str] = []
