"""What tests of the doctor write and read: secrets that it must not show, a `.env`, and the codes of its findings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

KEY = "sk-SECRET-0123456789"
TOKEN = "TOKEN-9876543210"


def codes(findings: Iterable[Any]) -> set[tuple[str, str]]:
    """Their codes, as a set of (code, level)."""
    return {(finding.code, finding.level) for finding in findings}


def write_env(*lines: str, mode: int = 0o600) -> None:
    """Makes a .env of the lines."""
    Path(".env").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path(".env").chmod(mode)
