"""One call from its start to its report: deadline, retries, breaker."""

from __future__ import annotations

__all__: list[str] = []
