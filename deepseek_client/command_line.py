"""What our commands share: arguments that are wrong are one line and the exit code 2, and lost output stops nothing."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["Parser", "hold_output", "number", "numbers", "output_code"]

_STDOUT, _STDERR = 1, 2


def hold_output() -> None:
    """Lets this process go on when its output cannot be written: closed, on a full disk, a pipe without reader.

    Such output is lost, and no print raises. A rollback has to reach its end, and a server its start, also where
    nobody can keep what they say. What the terminal's encoding cannot show becomes question marks. Idempotent.

    Threads: the main one, before others start.
    """
    _fill_standard_descriptors()
    for name, descriptor in (("stdout", _STDOUT), ("stderr", _STDERR)):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _stream_over(descriptor, stream))
        else:  # ours already, or somebody else's, who wants to have the text
            stream.reconfigure(errors="replace")


def output_code(code: int, command: str) -> int:
    """The exit code of a command: 1 in place of 0 if its answer was lost, which one line on stderr says.

    A reader that has gone, as `head` has, wanted no more: that is no failure.

    Threads: the main one, when all has been written.
    """
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    sys.stdout.flush()
    if not isinstance(raw, _Output) or raw.lost in (0, errno.EPIPE):
        return code
    print(f"{command}: the output cannot be written: {os.strerror(raw.lost)}", file=sys.stderr)
    return code or 1


class _Output(io.RawIOBase):
    """A descriptor that takes everything.

    Attributes:
        lost: the error number of the first write that failed; 0 while all has been written.

    Threads: as any raw stream: one at a time.
    """

    def __init__(self, descriptor: int) -> None:
        self.lost = 0
        self._descriptor = descriptor

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Writes what it can; says that it was all when it cannot."""
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            self.lost = self.lost or error.errno or errno.EIO
            return len(data)


def _stream_over(descriptor: int, former: Any) -> io.TextIOWrapper:
    with_lines = descriptor == _STDERR or os.isatty(descriptor)
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor)),
        encoding=getattr(former, "encoding", None) or "utf-8",
        errors="replace",
        line_buffering=with_lines,
        write_through=descriptor == _STDERR,
    )


def _fill_standard_descriptors() -> None:
    """Opens the standard ones that are closed, or files and sockets would get their numbers, and our words."""
    for descriptor in (0, _STDOUT, _STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened == descriptor:
                os.set_inheritable(descriptor, True)
            else:
                os.dup2(opened, descriptor)
                os.close(opened)


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

    # Not :g, which writes a million as 1e+06.
    span = f"from {low} to {high}" if kind is int or low else f"more than 0 and at most {high}"

    def read(text: str) -> float:
        plain = text if kind is int else text.replace(".", "", 1)
        value = kind(text) if plain.isascii() and plain.isdigit() else -1
        if not low <= value <= high or (kind is float and value == 0):
            raise argparse.ArgumentTypeError(f"{text!r}: need {unit} {span}")
        return value

    return read


def numbers(low: int, high: int, unit: str) -> Callable[[str], list[int]]:
    """Returns a `type` for an argument that is a list of whole numbers with commas; gives them sorted, each once.

    Args:
        low, high, unit: of each, as for `number`.
    """
    one = number(int, low, high, unit)
    return lambda text: sorted({int(one(part.strip())) for part in text.split(",")})
