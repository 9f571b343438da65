"""bin/doctor without the set-up: `python -m deepseek_client.ops.doctor`, in the repository root."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import NoReturn

from . import Finding, examine, read

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"doctor: {message} (bin/doctor --help lists the arguments)\n")


def main(arguments: Sequence[str]) -> int:
    """Prints the findings; 1 if one of them is worse than a hint. Leaves with 2 when the arguments are wrong."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--hosts", type=_hosts, default=1)
    options = parser.parse_args(arguments)
    logging.getLogger("dotenv").addHandler(logging.NullHandler())  # what it would say is a finding
    findings = examine(read(options.hosts))
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        print(_text(findings))
    return int(any(finding.level != "hint" for finding in findings))


def _hosts(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 100_000):
        raise argparse.ArgumentTypeError(f"{text!r}: need a whole number from 1 to 100000")
    return int(text)


def _text(findings: list[Finding]) -> str:
    if not findings:
        return "doctor: nothing found"
    blocks = [
        f"{finding.level}: {finding.what} [{finding.code}]\n    {finding.why}\n    Remedy: {finding.remedy}"
        for finding in findings
    ]
    return "\n".join(blocks)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a value may be Chinese, the terminal not
    sys.exit(main(sys.argv[1:]))
