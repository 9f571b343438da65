"""The command line of bin/bench; needs the standard library only, so that --help works before any set-up."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

__all__ = ["PARTS", "SDK", "Options", "parse"]

PARTS = {
    "a": "one call after the other",
    "b": "fan-out",
    "c": "a Flask route without an LLM",
    "d": "web servers under load",
    "e": "deadline to thread free",
    "f": "the sandbox's own ceiling",
    "streams": "streams of chunks",
    "tasks": "submit and poll: the web, and 1, 2, 4 workers",
}


SDK = "sdk"
"""A part that stands alone: its clients have an environment of their own."""


class Options(NamedTuple):
    """`json` and `plot` are absolute paths, "" when nobody asked for the file."""

    quick: bool
    parts: tuple[str, ...]
    json: str
    plot: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench: {message} (bin/bench --help lists the arguments)\n")


def parse(arguments: Sequence[str]) -> Options:
    """The options; leaves with 0 after --help, with 2 and one line when they are wrong."""
    parser = _Parser(
        prog="bin/bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures this project beside its peers against the local sandbox and prints Markdown tables.\n"
        "Sets up .venv-bench on first use. The parts:\n\n"
        + "\n".join(f"  {letter:5}  {title}" for letter, title in PARTS.items())
        + "\n\nand by itself, in .venv-sdk:\n\n  sdk  other vendors' clients: from a call's end to its thread",
        epilog="Exit codes: 0 measured (whether the claims hold or not), 1 a measurement failed, 2 wrong arguments.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and calls: 2 minutes instead of 15"
    )
    parser.add_argument("--only", default=",".join(PARTS), metavar="a,b,...", help="these parts only")
    parser.add_argument(
        "--json", default="", metavar="FILE", help="writes every round, the medians and the machine"
    )
    parser.add_argument(
        "--plot", default="", metavar="FILE.png", help="draws part b: calls per second over threads"
    )
    found = parser.parse_args(arguments)
    parts = tuple(letter.strip() for letter in found.only.split(","))
    if parts == (SDK,):
        if found.json or found.plot:
            parser.error("--only sdk writes no file")
        return Options(found.quick, parts, "", "")
    unknown = [letter for letter in parts if letter not in PARTS]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} is no part, need some of {','.join(PARTS)}, or {SDK} alone")
    if found.plot and "b" not in parts:
        parser.error("--plot draws part b, which --only leaves out")
    if found.plot and not found.plot.endswith(".png"):
        parser.error(f"--plot: {found.plot!r} does not end with .png")
    for path in filter(None, (found.json, found.plot)):
        folder = os.path.dirname(os.path.abspath(path))
        if not os.access(folder, os.W_OK):  # now, not after a quarter of an hour
            print(f"bench: cannot write to {folder}", file=sys.stderr)
            sys.exit(1)
    in_order = tuple(letter for letter in PARTS if letter in parts)
    return Options(
        found.quick, in_order, *(os.path.abspath(path) if path else "" for path in (found.json, found.plot))
    )
