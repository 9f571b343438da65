"""What hurts in where the settings come from: the process environment, `.env`, and the metrics' directory."""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...settings import Settings, nearest_setting
from ...telemetry.testimony import DIRECTORY_VARIABLE, process_state
from ..env_file import VARIABLE
from .finding import Finding, found
from .situation import Situation

__all__ = ["SECRETS", "examine_sources", "refusals"]

SECRETS = ("DEEPSEEK_API_KEY", "WEB_API_TOKEN", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")

_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_METRICS_PREFIX = "deepseek-metrics-"
# Beside what Settings reads: what the library reads, and what only our own application does.
_LIBRARY = {"DEEPSEEK_VERBOSE", _METRICS, DIRECTORY_VARIABLE}
_WEBAPP = {"HOST", "PORT", "WEB_CONCURRENCY", "WEB_THREADS"}
_PREFIXES = ("LLM_", "DEEPSEEK_", "USE_ASYNC", "WEB_")
_LOOKED_AT = 500  # names that nothing reads; each is compared with all that something reads


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
        yield found("unreadable_setting", text=text)


def examine_sources(situation: Situation) -> Iterator[Finding]:
    """The findings of this module."""
    yield from _open_file(situation)
    yield from _unclear_lines(situation)
    yield from _blanked_token(situation)
    yield from _shadowed(situation)
    yield from _unknown(situation)
    yield from _left_over_metrics()
    yield from _metrics_directory(situation)


def _open_file(situation: Situation) -> Iterator[Finding]:
    secrets = [name for name in SECRETS if _is_secret(name, situation.file.get(name, ""))]
    try:
        mode = stat.S_IMODE(os.stat(".env").st_mode) if secrets else 0
    except OSError:  # gone meanwhile
        return
    who = "everybody" if mode & 0o006 else "group" if mode & 0o060 else ""
    if who:
        yield found(f"open_env_file/{who}", secrets=" and ".join(secrets), mode=mode)


def _is_secret(name: str, value: str) -> bool:
    return bool(value) and (
        "@" in value or not name.startswith("CELERY_")
    )  # an address without a password is none


def _unclear_lines(situation: Situation) -> Iterator[Finding]:
    for line in situation.unread_lines:
        yield found("unread_line", line=line)
    for name in situation.repeated:
        if not (name == "WEB_API_TOKEN" and name in situation.blanked):
            yield found("assigned_twice", name=name)
    if "GUNICORN_CMD_ARGS" in situation.file:
        yield found("unread_variable")


def _blanked_token(situation: Situation) -> Iterator[Finding]:
    token = "WEB_API_TOKEN"
    if not situation.get(token) and token in situation.blanked:
        yield found("token_blanked/file")
    if not situation.process.get(token, "x").strip() and situation.file.get(token, "").strip():
        yield found("token_blanked/environment")


def _shadowed(situation: Situation) -> Iterator[Finding]:
    for name, value in situation.file.items():
        in_process = situation.process.get(name, value).strip()
        if name in _known(situation.is_webapp) and in_process != value.strip():
            if name == VARIABLE:
                yield found("shadowed/switch", name=name)
            elif name != "WEB_API_TOKEN" or in_process:
                yield found("shadowed", name=name)
    in_both = situation.file.get(VARIABLE, situation.process.get(VARIABLE, ""))
    if VARIABLE in situation.process and in_both.strip() == situation.process[VARIABLE].strip():
        yield found("toggle_shadowed", name=VARIABLE)


@functools.cache
def _known(is_webapp: bool) -> frozenset[str]:
    environment = _Recorder()
    Settings.from_env(environment)
    return frozenset(environment.asked | _LIBRARY | _WEBAPP if is_webapp else environment.asked | _LIBRARY)


def _unknown(situation: Situation) -> Iterator[Finding]:
    """What looks like a setting of ours; a prefix alone is no proof, for other programs have the same."""
    known = _known(situation.is_webapp)
    names = {name for name in situation.process if name.startswith(_PREFIXES)} | {*situation.file}
    for name in sorted(names - known)[:_LOOKED_AT]:
        meant = nearest_setting(name.upper(), known)
        is_longer = name.startswith(f"{meant}_")  # a word more is a name of its own
        if meant and not situation.get(meant) and not is_longer:
            yield found("unknown_variable", name=name, meant=meant)


def _left_over_metrics() -> Iterator[Finding]:
    directory = tempfile.gettempdir()
    names = [name for name in os.listdir(directory) if name.startswith(_METRICS_PREFIX)]
    dead = sorted(name for name in names if not _lives(name.removeprefix(_METRICS_PREFIX)))
    if dead:
        example = f"rm -r {os.path.join(directory, dead[0])}"
        yield found(
            "left_over_metrics",
            number=len(dead),
            prefix=_METRICS_PREFIX,
            directory=directory,
            example=example,
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
    path = situation.get(_METRICS)
    if not path:
        return
    existing = next(parent for parent in (Path(path), *Path(path).absolute().parents) if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        yield found("metrics_directory", path=path)
    elif strangers := _masters_that_use(Path(path, "deepseek")) - situation.masters:
        yield found("shared_metrics", path=path, pid=min(strangers))


def _masters_that_use(directory: Path) -> set[int]:
    """The ids of the servers whose workers hold locks in the directory; empty where the system does not tell."""
    try:
        numbers = {str(file.stat().st_ino) for file in directory.glob("*.lock")}
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()] if numbers else []
    except OSError:
        return set()
    # 1: POSIX ADVISORY WRITE <process> <device>:<device>:<file> 0 EOF
    holders = {fields[4] for fields in locks if len(fields) > 5 and fields[5].rpartition(":")[2] in numbers}
    return {state.parent for holder in holders if (state := process_state(int(holder)))}
