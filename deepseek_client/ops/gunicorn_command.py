"""What a gunicorn was told, and what it would make of it now: asked of gunicorn itself, in a process of its own."""

from __future__ import annotations

import ast
import os
import re
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..telemetry.testimony import DIRECTORY_VARIABLE
from .refusal import Refusal

__all__ = ["Command", "gunicorn_arguments", "is_genuine"]

_GIVE_UP_S = 60
_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_MODULES = ("gunicorn", "gunicorn.app.wsgiapp")
_ENTRY_POINT = re.compile(rb"gunicorn\.app\.wsgiapp|['\"]gunicorn['\"], *['\"]console_scripts['\"]")
_SCRIPT_BYTES = 4096  # what pip and the distributions make is shorter
_PRINT_OPTIONS = "from gunicorn.app.wsgiapp import WSGIApplication as A; print(A(prog='gunicorn').cfg)"
# Flags of the interpreter, then perhaps one that takes a value, in the same word or in the next.
_INTERPRETER_OPTION = re.compile(r"-([^cmWX-]*)([cmWX]?)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """How a gunicorn was started.

    Attributes:
        words: its command line.
        environ: the variables that it was started with.
        directory: where it works.
        user: the user and the group that it runs as, and its further groups; None for those of this process.

    Threads: immutable.
    """

    words: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    directory: str
    user: tuple[int, int, tuple[int, ...]] | None = None

    def all_arguments(self) -> list[str]:
        """Returns what it was told on its command line and by GUNICORN_CMD_ARGS."""
        try:
            return [*self.words, *shlex.split(self.environ.get("GUNICORN_CMD_ARGS", ""))]
        except ValueError:  # gunicorn would not have started with it
            return [*self.words]

    def rehearse(self, **variables: str) -> dict[str, Any]:
        """Loads configuration and application as a reload would, and returns gunicorn's options.

        Args:
            variables: what the environment has beside the master's.

        Raises:
            Refusal: they do not load, so that a reload would end the server; exit code 2 if settings are wrong.
        """
        # The command line's last word wins: a relative --chdir must not be followed twice.
        words = [*self.words, "--print-config", "--chdir", self.directory]
        code, output, error = self._run(words, variables)
        if code is None:
            raise Refusal(f"a reload might not succeed: the application did not load in {_GIVE_UP_S} s")
        if code:
            reason = (error.strip() or f"exit code {code}").splitlines()[-1]
            setting = reason.removeprefix("deepseek_client.errors.ConfigError: ")
            is_setting = code == 2 or setting != reason
            raise Refusal(f"a reload would end the server: {setting}", exit_code=2 if is_setting else 1)
        return _options_in(output)

    def options(self) -> dict[str, Any]:
        """Returns gunicorn's options as it would read them now; the application is not loaded.

        Raises:
            Refusal: they cannot be read; exit code 2.
        """
        arguments = gunicorn_arguments(self.words) or []
        words = [self.words[0], "-c", _PRINT_OPTIONS, *arguments, "--chdir", self.directory]
        code, output, error = self._run(words, {})
        if code != 0:
            reason = (error.strip() or "gunicorn's settings cannot be read").splitlines()[-1]
            raise Refusal(reason, exit_code=2)
        return _options_in(output)

    def _run(self, words: Sequence[str], variables: Mapping[str, str]) -> tuple[int | None, str, str]:
        """The exit code, None for one that did not end in time, and what it has written."""
        uid, gid, groups = self.user or (None, None, None)
        with _scratch(uid, gid) as scratch:
            # It shall neither count in the metrics nor testify.
            apart = {_METRICS: str(scratch), DIRECTORY_VARIABLE: str(scratch / "run")}
            # Files: a pipe would also wait for what the application leaves running.
            with open(scratch / "out", "w+b") as output, open(scratch / "err", "w+b") as error:
                try:
                    code: int | None = subprocess.run(
                        words,
                        cwd=_start_directory(self.words, self.environ, self.directory),
                        env={**self.environ, **variables, **apart},
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=error,
                        user=uid,
                        group=gid,
                        extra_groups=groups,
                        timeout=_GIVE_UP_S,
                    ).returncode
                except subprocess.TimeoutExpired:
                    code = None
                except OSError as problem:
                    raise Refusal(f"cannot start {words[0]}, which runs the server: {problem}") from None
                texts = []
                for file in (output, error):
                    file.seek(0)
                    texts.append(file.read().decode(errors="replace"))
        return code, texts[0], texts[1]


def gunicorn_arguments(words: Sequence[str]) -> list[str] | None:
    """Returns what follows gunicorn's name in a command line; None if the command is not gunicorn's own."""
    program = _program(words)
    return program and program[1]


def is_genuine(words: Sequence[str], environ: Mapping[str, str], directory: str) -> bool:
    """Whether a command line runs gunicorn itself, not somebody's script of that name: it may be executed.

    A script is gunicorn's if it lies beside an interpreter or starts gunicorn's own entry point, and if neither it nor
    its directory can be changed by everybody.

    Args:
        words: the command line.
        environ: the variables of the process.
        directory: where it works.
    """
    program = _program(words)
    if program is None:
        return False
    start = Path(_start_directory(words, environ, directory))
    if program[0] == "-m":
        return not (start / "gunicorn.py").exists()  # would be taken for the package
    script = start / program[0]
    try:
        mode = script.stat().st_mode
        if not stat.S_ISREG(mode) or mode & stat.S_IWOTH or _may_everybody_replace_in(script.parent):
            return False
        if script.name == "__main__.py":
            return (script.parent / "app" / "wsgiapp.py").is_file()
        with script.open("rb") as stream:
            text = stream.read(_SCRIPT_BYTES)
        return _ENTRY_POINT.search(text) is not None or any(
            (place / name).exists()
            for place in (script.parent, script.resolve().parent)
            for name in ("python", "python3")
        )
    except OSError:
        return False


def _program(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The script that is gunicorn, or "-m" for the module, and its arguments; None if there is none."""
    rest = [*words]
    if not rest:
        return None
    first = rest.pop(0)
    if _is_script(first):
        return first, rest
    while rest:
        word = rest.pop(0)
        found = _INTERPRETER_OPTION.fullmatch(word)
        if not found:
            return (word, rest) if _is_script(word) else None
        option, value = found[2], found[3]
        if option and not value:
            value = rest.pop(0) if rest else ""
        if option == "m":
            return ("-m", rest) if value in _MODULES else None
        if option == "c":
            return None
    return None


def _may_everybody_replace_in(directory: Path) -> bool:
    mode = directory.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _start_directory(words: Sequence[str], environ: Mapping[str, str], directory: str) -> str:
    """Where it was started, which --chdir makes another place: relative words of the command line mean that."""
    start = environ.get("PWD", "")
    relative = [word for word in words if not word.startswith(("-", "/"))]
    is_there = any(Path(start, word).exists() and not Path(directory, word).exists() for word in relative)
    return start if is_there else directory


def _is_script(word: str) -> bool:
    # The second: what USR2 makes of `python -m gunicorn`.
    return re.search(r"(^|/)gunicorn(-?[0-9.]*|/__main__\.py)$", word) is not None


def _options_in(text: str) -> dict[str, Any]:
    """What --print-config prints: numbers, lists and truth values as such, the rest as text."""
    options: dict[str, Any] = {}
    for name, value in re.findall(r"^([a-z_]+) += (.*)$", text, re.MULTILINE):
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


@contextmanager
def _scratch(uid: int | None, gid: int | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="deepseek-rehearsal-", ignore_cleanup_errors=True) as name:
        if uid is not None and gid is not None:
            os.chown(name, uid, gid)
        yield Path(name)
