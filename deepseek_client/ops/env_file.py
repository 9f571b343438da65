"""The file .env: reading it, and changing the one value while every other byte stays."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from pathlib import Path

from dotenv.parser import parse_stream

from ..errors import ConfigError
from ..settings_file import env_text, values_in
from .refusal import Refusal

__all__ = ["VARIABLE", "EnvFile", "with_value"]

VARIABLE = "USE_ASYNC_DEEPSEEK"

# What python-dotenv has found to be an assignment; `value` is what may be replaced, a comment behind it is not.
_ASSIGNMENT = re.compile(
    rf"""
    (?P<name> \s* (?:export[^\S\r\n]+)? '?{VARIABLE}'? )
    (?:
        (?P<equals> [^\S\r\n]* = (?:[^\S\r\n]*(?=[^\s\#]))? )
        (?P<value> '(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" | [^\r\n]*?(?=[^\S\r\n]+\#|[^\S\r\n]*(?:[\r\n]|\Z)) )
    )?
    """,
    re.VERBOSE | re.DOTALL,
)


def with_value(text: str, value: str) -> str:
    """The text of a .env in which VARIABLE has the value.

    Replaces the value of the last assignment, which is the one that counts, in the quotes that it has; without any
    assignment, adds a line at the end.
    """
    bindings = list(parse_stream(io.StringIO(text)))
    pieces = [binding.original.string for binding in bindings]
    places = [place for place, binding in enumerate(bindings) if binding.key == VARIABLE]
    if not places:
        newline = "\r\n" if "\r\n" in text else "\n"
        gap = "" if not text or text.endswith(("\n", "\r")) else newline
        return f"{text}{gap}{VARIABLE}={value}{newline}"
    byte_order_mark = text[: len(text) - sum(map(len, pieces))]  # the parser leaves it out
    line = pieces[places[-1]]
    found = _ASSIGNMENT.match(line)
    assert found, line
    old, rest = found["value"] or "", line[found.end() :]
    quote = old[0] if old.startswith(("'", '"')) else ""
    gap = " " if rest.startswith("#") and not quote else ""  # the # would belong to the value
    pieces[places[-1]] = f"{found['name']}{found['equals'] or '='}{quote}{value}{quote}{gap}{rest}"
    return byte_order_mark + "".join(pieces)


class EnvFile:
    """A .env as it was when this was built; a link is followed, so that its target is what changes.

    Attributes:
        values: what it assigns, {} if there is no file.
        backup: where `write` leaves the old content.

    Raises:
        Refusal: it cannot be read; with exit code 2.

    Threads: one.
    """

    def __init__(self, path: str = ".env") -> None:
        self._path = Path(os.path.realpath(path))
        self.backup = self._path.with_name(self._path.name + ".bak")
        try:
            text = env_text(path)
        except ConfigError as error:
            raise Refusal(str(error), exit_code=2) from None
        self._exists = text is not None
        self._text = text or ""
        self._hold(self._text)

    def write(self, value: str, owner: tuple[int, int]) -> None:
        """Gives VARIABLE the value, atomically; permissions and owner stay.

        Args:
            value: "1" or "0".
            owner: uid and gid for a file that does not exist yet, whose mode will be 0600.

        Raises:
            Refusal: it cannot be written; nothing has changed.
        """
        written = with_value(self._text, value)
        if self._exists and written == self._text:
            return
        try:
            if self._exists:
                _replace(self.backup, self._text, self._path)
            _replace(self._path, written, self._path if self._exists else None, owner)
        except OSError as error:
            raise Refusal(f"cannot write {self._path} and keep its owner: {error.strerror}") from None
        self._hold(written)

    def put_back(self) -> bool:
        """Undoes `write`, unless someone else has changed the file since; whether it is as it was."""
        try:
            if self._path.read_bytes().decode() != self._written:
                return False
            if self._exists:
                _replace(self._path, self._text, self._path)
            else:
                self._path.unlink()
        except (OSError, UnicodeDecodeError):
            return False
        self._hold(self._text)
        return True

    def _hold(self, text: str) -> None:
        self._written = text
        self.values = values_in(text)


def _replace(path: Path, text: str, model: Path | None, owner: tuple[int, int] = (-1, -1)) -> None:
    """Puts a file with the text in the path's place; permissions, attributes and owner are the model's."""
    descriptor, temporary = tempfile.mkstemp(prefix=".env.", suffix=".tmp", dir=path.parent)  # mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode())
            if model:
                owner = (model.stat().st_uid, model.stat().st_gid)
            if owner != (os.fstat(descriptor).st_uid, os.fstat(descriptor).st_gid):
                os.chown(temporary, *owner)
            if model:
                shutil.copystat(model, temporary)
                os.utime(temporary)  # but not the time of the last change
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
