"""One thing that the doctor has found."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LEVELS", "Finding"]

LEVELS = ("error", "warning", "hint")


@dataclass(frozen=True)
class Finding:
    """What is the matter, why it hurts, and what helps; never a key or a token.

    Attributes:
        level: "error": calls fail, or the server does not start. "warning": it hurts under load or at a reload, or is
            unsafe. "hint": worth knowing, may be meant so.
        code: its name for programs.
        what: the matter, with the values that are in question.
        why: what it leads to.
        remedy: what to do.
    """

    level: str
    code: str
    what: str
    why: str
    remedy: str
