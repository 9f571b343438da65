"""One thing that the doctor has found."""

from __future__ import annotations

from dataclasses import dataclass

from .texts import TEXTS

__all__ = ["LEVELS", "Finding", "found"]

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

    Threads: immutable.
    """

    level: str
    code: str
    what: str
    why: str
    remedy: str


def found(code: str, **values: object) -> Finding:
    """Returns the finding of this code and, behind a slash, this variant, with the values in its texts."""
    level, *texts = TEXTS[code]
    what, why, remedy = (text.format_map(values) for text in texts)
    return Finding(level, code.partition("/")[0], what, why, remedy)
