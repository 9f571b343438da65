"""The arguments of our commands: one that is wrong is answered with one line and the exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

__all__ = ["Parser", "number", "numbers"]


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line that begins with the command's last word.

    Threads: one.
    """

    def error(self, message: str) -> NoReturn:
        """Ends the process with 2."""
        self.exit(2, f"{self.prog.split()[-1]}: {message} ({self.prog} --help lists the arguments)\n")


def number(kind: type[int] | type[float], low: float, high: float, unit: str) -> Callable[[str], float]:
    """Returns a `type` for an argument that is a number in plain digits.

    Args:
        low: the smallest that is allowed, but never 0 for a float.
        high: the largest that is allowed.
        unit: what is counted, in the plural.
    """

    def read(text: str) -> float:
        plain = text if kind is int else text.replace(".", "", 1)
        value = kind(text) if plain.isascii() and plain.isdigit() else -1
        if not low <= value <= high or (kind is float and value == 0):
            raise argparse.ArgumentTypeError(f"{text!r}: need {unit} from {low:g} to {high:g}")
        return value

    return read


def numbers(low: int, high: int, unit: str) -> Callable[[str], list[int]]:
    """Returns a `type` for an argument that is a list of whole numbers with commas; gives them sorted, each once.

    Args:
        low, high, unit: of each, as for `number`.
    """
    one = number(int, low, high, unit)
    return lambda text: sorted({int(one(part.strip())) for part in text.split(",")})
