"""The command line of bin/soak; needs the standard library only, so that --help works before any set-up."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

__all__ = ["MINUTES_LIMIT", "Options", "parse"]

MINUTES_LIMIT = 1440.0
_MINUTES_LEAST = 0.1


class Options(NamedTuple):
    """`json` is an absolute path, "" when nobody asked for the file."""

    minutes: float
    seed: int
    json: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"soak: {message} (bin/soak --help lists the arguments)\n")


def parse(arguments: Sequence[str]) -> Options:
    """The options; leaves with 0 after --help, with 2 and one line when they are wrong."""
    parser = _Parser(
        prog="bin/soak",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Runs the application under load, over an API that fails in every way, and compares threads,\n"
        "descriptors, memory and slots at the end with those after the first 10 seconds, both at rest.\n"
        "Sets up .venv on first use; needs Linux, no key and no network.",
        epilog="Exit codes: 0 all is as it was, 1 something is not or the run failed, 2 wrong arguments.",
    )
    parser.add_argument(
        "--minutes",
        type=_minutes,
        default=2.0,
        metavar="N",
        help=f"how long, {_MINUTES_LEAST:g} to {MINUTES_LIMIT:g}; default 2. Below 1 a leak must be large to be seen",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        default=1,
        metavar="N",
        help="of calls and faults, default 1; threads still differ",
    )
    parser.add_argument(
        "--json", default="", metavar="FILE", help="writes the verdict, every sample and all counts"
    )
    found = parser.parse_args(arguments)
    path = os.path.abspath(found.json) if found.json else ""
    # Now, not after a day.
    if path and (os.path.isdir(path) or not os.access(os.path.dirname(path), os.W_OK)):
        print(f"soak: cannot write {path}", file=sys.stderr)
        sys.exit(1)
    return Options(found.minutes, found.seed, path)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not _MINUTES_LEAST <= minutes <= MINUTES_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r}: need minutes, {_MINUTES_LEAST:g} to {MINUTES_LIMIT:g}")
    return minutes


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise argparse.ArgumentTypeError(f"{text!r}: need a whole number of at most 18 digits")
    return int(text)
