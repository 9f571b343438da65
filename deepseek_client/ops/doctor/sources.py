"""What hurts in where the settings come from: the process environment, `.env`, and the metrics' directory."""

from __future__ import annotations

import difflib
import functools
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from deepseek_client import Settings

from .finding import Finding
from .situation import METRICS_DIRECTORY, Situation

__all__ = ["SECRETS", "examine_sources", "refusals"]

SECRETS = ("DEEPSEEK_API_KEY", "WEB_API_TOKEN")

_TOGGLE = "USE_ASYNC_DEEPSEEK"
# Beside what Settings reads.
_OTHERS = {
    *("DEEPSEEK_VERBOSE", "LOG_FORMAT", "HOST", "PORT", "WEB_CONCURRENCY", "WEB_THREADS", METRICS_DIRECTORY),
    *("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"),
}
_PREFIXES = ("LLM_", "DEEPSEEK_", "USE_ASYNC", "WEB_")
_METRICS_PREFIX = "deepseek-metrics-"


class _Recorder(Mapping[str, str]):
    """An empty environment that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def refusals(situation: Situation) -> Iterator[Finding]:
    """A finding for each setting that cannot be read; the server does not start with one."""
    for text in situation.refusals:
        yield Finding(
            "error",
            "unreadable_setting",
            text,
            "The server does not start, and ends at a reload (SIGHUP).",
            "Correct it; README and .env.example list the settings and their ranges.",
        )


def examine_sources(situation: Situation) -> Iterator[Finding]:
    """The findings of this module."""
    yield from _open_file(situation)
    yield from _unclear_lines(situation)
    yield from _shadowed(situation)
    yield from _unknown(situation)
    yield from _left_over_metrics()
    yield from _metrics_directory(situation)


def _open_file(situation: Situation) -> Iterator[Finding]:
    secrets = [name for name in SECRETS if situation.file.get(name)]
    if not secrets:
        return
    try:
        mode = stat.S_IMODE(os.stat(".env").st_mode)
    except OSError:  # gone meanwhile
        return
    for who, bits, level in (("everybody", 0o006, "warning"), ("its group", 0o060, "hint")):
        if mode & bits:
            yield Finding(
                level,
                "open_env_file",
                f".env holds {' and '.join(secrets)} and is open to {who} on this machine (mode {mode:04o}).",
                "Any other user or service of the machine can take them.",
                "chmod 600 .env",
            )
            return


def _unclear_lines(situation: Situation) -> Iterator[Finding]:
    for line in situation.unread_lines:
        yield Finding(
            "warning",
            "unread_line",
            f"Line {line} of .env is no assignment.",
            "It is skipped, and what it should set keeps its default.",
            "Write NAME=value; values with blanks or # in quotation marks.",
        )
    for name in situation.repeated:
        yield Finding(
            "warning",
            "assigned_twice",
            f".env assigns {name} more than once.",
            "The last one counts, and whoever edits another one changes nothing.",
            "Leave one.",
        )
    if "GUNICORN_CMD_ARGS" in situation.file:
        yield Finding(
            "warning",
            "unread_variable",
            ".env sets GUNICORN_CMD_ARGS.",
            "gunicorn reads it from the process environment only.",
            "Export it, or use HOST, PORT, WEB_CONCURRENCY and WEB_THREADS.",
        )


def _shadowed(situation: Situation) -> Iterator[Finding]:
    toggled = False
    for name, value in situation.file.items():
        if _is_ours(name) and situation.process.get(name, value).strip() != value.strip():
            toggled = toggled or name == _TOGGLE
            yield Finding(
                "warning",
                "shadowed",
                f"{name} is set in the process environment, and differently in .env.",
                "The environment wins: what .env says of it has no effect, and a reload does not change that."
                + (" bin/toggle-async cannot roll back." if name == _TOGGLE else ""),
                f"Unset {name} where the server is started, or take it out of .env.",
            )
    if _TOGGLE in situation.process and not toggled:
        yield Finding(
            "hint",
            "toggle_shadowed",
            f"{_TOGGLE} is set in the process environment.",
            "It wins over .env, which bin/toggle-async edits: that could not roll back.",
            f"Unset {_TOGGLE} where the server is started, and set it in .env.",
        )


def _is_ours(name: str) -> bool:
    return name in _known() or name.startswith(_PREFIXES)


@functools.cache
def _known() -> set[str]:
    environment = _Recorder()
    Settings.from_env(environment)
    return environment.asked | _OTHERS


_LOOKED_AT = 500  # names that nothing reads; each is compared with all that something reads


def _unknown(situation: Situation) -> Iterator[Finding]:
    known = _known()
    for name in sorted({*situation.file, *situation.process} - known)[:_LOOKED_AT]:
        similar = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.85)
        meant = next((other for other in similar if not situation.get(other)), "")
        # What else the environment has may be another program's.
        if meant and (name in situation.file or name.startswith(_PREFIXES)):
            yield Finding(
                "warning",
                "unknown_variable",
                f"Nothing reads {name}; is {meant} meant?",
                f"{meant} keeps its default.",
                f"Rename it to {meant}, or remove it.",
            )
        elif name in situation.file and name.startswith(_PREFIXES):
            yield Finding(
                "hint",
                "unknown_variable",
                f"Nothing reads {name}, which .env sets.",
                "It has no effect.",
                "Remove it, or correct its name; .env.example lists all.",
            )


def _left_over_metrics() -> Iterator[Finding]:
    temporary = tempfile.gettempdir()
    dead = [
        entry
        for entry in os.listdir(temporary)
        if entry.startswith(_METRICS_PREFIX) and not _lives(entry.removeprefix(_METRICS_PREFIX))
    ]
    if dead:
        yield Finding(
            "hint",
            "left_over_metrics",
            f"{len(dead)} of the {_METRICS_PREFIX}* in {temporary} belong to servers that have ended.",
            "A server that was killed leaves its own; they only take space.",
            f"rm -r {os.path.join(temporary, dead[0])}"
            if len(dead) == 1
            else "Remove them; the number in a name is the process that made it.",
        )


def _lives(text: str) -> bool:
    """Whether the process lives whose id the text begins with."""
    pid = text.partition("-")[0]
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except (PermissionError, ValueError):  # another user's; not a name of ours
        return True
    return True


def _metrics_directory(situation: Situation) -> Iterator[Finding]:
    path = situation.get(METRICS_DIRECTORY)
    if not path or Path(path).name.startswith(_METRICS_PREFIX):  # a server gives itself another one than that
        return
    existing = next(parent for parent in (Path(path), *Path(path).absolute().parents) if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        yield Finding(
            "error",
            "metrics_directory",
            f"{METRICS_DIRECTORY}={path} cannot be written to.",
            "The server does not start, or its workers do not.",
            f"Unset {METRICS_DIRECTORY}: a server makes a directory of its own.",
        )
    elif strangers := _masters_that_use(Path(path)) - {_own_master(situation)}:
        yield Finding(
            "warning",
            "shared_metrics",
            f"{METRICS_DIRECTORY}={path} is in use by another server (process {min(strangers)}).",
            "The one that starts wipes what the other counted, and both show the sum of both.",
            f"Unset {METRICS_DIRECTORY}: a server makes a directory of its own.",
        )


def _masters_that_use(directory: Path) -> set[int]:
    """The ids of the servers whose workers hold locks in the directory; empty where the system does not tell."""
    try:
        numbers = {str(file.stat().st_ino) for file in directory.glob("*.lock")}
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()] if numbers else []
    except OSError:
        return set()
    # 1: POSIX ADVISORY WRITE <process> <device>:<device>:<file> 0 EOF
    holders = {fields[4] for fields in locks if len(fields) > 5 and fields[5].rpartition(":")[2] in numbers}
    return {parent for holder in holders if (parent := _parent_of(holder))}


def _parent_of(pid: str) -> int:
    try:
        status = Path("/proc", pid, "status").read_text()
    except OSError:  # it has ended
        return 0
    return int(status.partition("PPid:")[2].split()[0])


def _own_master(situation: Situation) -> int:
    """The process that the server of this PORT wrote into its file, 0 if there is none."""
    try:
        return int(Path(f".gunicorn-{situation.get('PORT') or 5000}.pid").read_text())
    except (OSError, ValueError):
        return 0
