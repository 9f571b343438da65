"""What the switch says about .env, the workers and the outcome of a reload."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ...telemetry.testimony import Testimony
from ..deployment import Server, Worker, name_of
from ..env_file import VARIABLE, EnvFile

__all__ = [
    "Told",
    "failures",
    "in_env",
    "mode_in",
    "of_deaf",
    "of_each",
    "of_others",
    "of_preloaded",
    "of_silent",
    "summary",
]

Told = Mapping[Worker, "Testimony | None"]
"""Each worker with what it has said; None if it has said nothing yet."""

_ON = ("", "1", "true", "yes", "on")
_OFF = ("0", "false", "no", "off")


def mode_in(env_file: EnvFile) -> str:
    """Returns the mode that .env asks for, by the words that `Settings` knows; "wrong" if its value is none of them."""
    word = env_file.values.get(VARIABLE, "").strip().lower()
    return "async" if word in _ON else "sync" if word in _OFF else "wrong"


def in_env(env_file: EnvFile) -> str:
    """Returns what .env says."""
    value = env_file.values.get(VARIABLE)
    return f".env {mode_in(env_file)} ({VARIABLE} {f'is {value!r}' if value else 'not set'})"


def of_each(told: Told) -> list[str]:
    """Returns a line for each worker."""
    return [
        f"worker {worker.pid}: {_said(said)}"
        for worker, said in sorted(told.items(), key=lambda each: each[0])
    ]


def of_others(others: Sequence[Testimony]) -> list[str]:
    """Returns a line for each process that serves and is no gunicorn's worker."""
    return [f"process {said.pid} ({name_of(said.pid)}): {_said(said)}" for said in others]


def of_silent(silent: Sequence[int], directory: Path) -> list[str]:
    """Returns a line for each gunicorn that works here and of which nobody has testified, with what to do."""
    remedy = (
        "send each of its workers a request, with which DeepSeek(app) testifies, or restart it; "
        "one that still loads the application will testify by itself"
    )
    return [f"gunicorn {pid} runs here and has not testified in {directory}: {remedy}" for pid in silent]


def of_deaf(others: Sequence[Testimony]) -> list[str]:
    """Returns what to do with processes that are no gunicorn's workers, so that no signal makes them read .env."""
    return [f"{other}: it hears no SIGHUP, restart it" for other in of_others(others)]


def of_preloaded(server: Server) -> str:
    """Returns what to do with a gunicorn that loads the application before it forks."""
    return f"gunicorn {server.pid} was started with preload and hears no SIGHUP: restart it, and it does what .env says"


def summary(told: Told) -> str:
    """Returns the workers by mode, in one line."""
    groups: dict[str, list[Worker]] = {}
    for worker in sorted(told):
        said = told[worker]
        groups.setdefault(said.mode if said else "without a testimony", []).append(worker)
    return ", ".join(f"{_named(workers)} {mode}" for mode, workers in sorted(groups.items())) or "no worker"


def failures(
    servers: Sequence[Server], told: Told, old: Collection[Worker], wanted: str, waited_s: float
) -> tuple[list[str], bool]:
    """Returns why a reload has not been proved, and whether some worker has taken the wanted mode or may have.

    Args:
        told: the workers after the reload.
        old: those before it.
        waited_s: how long they had.
    """
    new = told.keys() - old
    wrong = {worker for worker in new if (said := told[worker]) and said.mode != wanted}
    silent = {worker for worker in new if told[worker] is None}
    lingering = told.keys() & old
    reasons = []
    for server in servers:
        if not server.is_alive():
            reasons.append(f"gunicorn {server.pid} ended during the reload, its log says why")
        elif not server.workers() - {*old}:
            reasons.append(f"no new worker of gunicorn {server.pid} started within {waited_s:g} s")
    if wrong:
        reasons.append(
            f"{_named(wrong)} started with the old mode: {_what_comes_first(told[worker] for worker in wrong)}"
        )
    if silent:
        reasons.append(f"{_named(silent)} did not testify within {waited_s:g} s")
    if lingering:
        reasons.append(f"old {_named(lingering)} did not leave within {waited_s:g} s")
    # A worker that has not testified yet has read .env all the same.
    return reasons, new > wrong


def _said(said: Testimony | None) -> str:
    return f"{said.mode}, engine {said.engine}, since {said.since}" if said else "no testimony"


def _named(workers: Collection[Worker]) -> str:
    pids = " ".join(str(worker.pid) for worker in sorted(workers))
    return f"worker{'s' * (len(workers) > 1)} {pids}"


def _what_comes_first(told: Iterable[Testimony | None]) -> str:
    if all(said and VARIABLE in said.config for said in told):
        return f"the application sets {VARIABLE} in app.config, which comes before .env"
    return "something freezes it or comes before .env"
