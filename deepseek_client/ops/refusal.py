"""Why the switch cannot do what it was asked to."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(Exception):
    """One sentence for the operator, with the remedy.

    Attributes:
        exit_code: 1, or 2 when settings are wrong.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
