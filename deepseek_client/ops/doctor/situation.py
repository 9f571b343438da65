"""What the doctor looks at: the settings as a server that starts now would read them, and where they come from."""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import runpy
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from deepseek_client import ConfigError, Settings

__all__ = ["METRICS_DIRECTORY", "Server", "Situation", "read"]

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

_ENV_FILE = Path(".env")
_GUNICORN_CONFIG = Path(__file__).parents[3] / "webapp" / "gunicorn.conf.py"
_GUNICORN_NAMES = (
    *("bind", "workers", "threads", "worker_class", "timeout", "graceful_timeout"),
    "preload_app",
)


@dataclass(frozen=True)
class Server:
    """What gunicorn is told, by webapp/gunicorn.conf.py and by GUNICORN_CMD_ARGS, which comes before it."""

    bind: tuple[str, ...] = ("127.0.0.1:5000",)
    workers: int = 2
    threads: int = 1
    worker_class: str = "sync"
    timeout: float = 35
    graceful_timeout: float = 30
    preload_app: bool = False

    @property
    def is_sync(self) -> bool:
        """Whether a worker serves one request at a time, and is silent to its master meanwhile."""
        return self.worker_class == "sync" and self.threads <= 1


@dataclass(frozen=True)
class Situation:
    """Everything that findings are derived from.

    Attributes:
        process: the process environment.
        file: what `.env` in the current directory sets.
        refusals: a sentence for each setting that cannot be read.
        unread_lines: lines of `.env` that are no assignment.
        repeated: names that `.env` assigns more than once.
        settings: the readable ones; defaults stand in for the rest.
        server: as Settings.
        hosts: how many machines serve with these settings.
        open_files: how many files a process may have open.
    """

    process: dict[str, str] = field(repr=False)
    file: dict[str, str] = field(repr=False)
    refusals: tuple[str, ...] = field(repr=False)
    unread_lines: tuple[int, ...]
    repeated: tuple[str, ...]
    settings: Settings
    server: Server
    hosts: int
    open_files: int

    def get(self, name: str) -> str:
        """A variable as the server sees it: the process environment comes before `.env`; "" when it is not set."""
        return self.process.get(name, self.file.get(name, "")).strip()


def read(hosts: int = 1) -> Situation:
    """The situation in this process's environment and current directory; changes nothing in either."""
    process = dict(os.environ)
    file, unread_lines, repeated, refusals = _env_file()
    settings, more = _settings({**file, **process})
    server, last = (Server(), []) if refusals else _server()  # it reads the same file
    by_name = {text.partition("=")[0]: text for text in [*last, *more, *refusals]}
    return Situation(
        process=process,
        file=file,
        refusals=tuple(by_name.values()),
        unread_lines=tuple(unread_lines),
        repeated=tuple(repeated),
        settings=settings,
        server=server,
        hosts=hosts,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def _env_file() -> tuple[dict[str, str], list[int], list[str], list[str]]:
    """Its values, the lines that are no assignment, the names that it repeats, and why it cannot be read."""
    if os.path.lexists(_ENV_FILE) and not _ENV_FILE.is_file():
        return {}, [], [], [".env cannot be read: it is not a file"]
    try:
        values = {name: value for name, value in dotenv_values(_ENV_FILE).items() if value is not None}
        bindings = []
        if _ENV_FILE.exists():
            with _ENV_FILE.open(encoding="utf-8") as stream:
                bindings = list(parse_stream(stream))
    except (OSError, ValueError) as error:
        return {}, [], [], [f".env cannot be read: {error}"]
    names = Counter(binding.key for binding in bindings if binding.key)
    unread_lines = [binding.original.line for binding in bindings if binding.error]
    return values, unread_lines, sorted(name for name in names if names[name] > 1), []


def _settings(env: dict[str, str]) -> tuple[Settings, list[str]]:
    """The settings without those that are wrong, and what is wrong with each of those."""
    refusals: list[str] = []
    while True:
        try:
            return Settings.from_env(env), refusals
        except ConfigError as error:
            refusals.append(str(error))
            name = re.match("[A-Z_]+", str(error))
            if name is None or env.pop(name[0], None) is None:
                return Settings(), refusals


def _server() -> tuple[Server, list[str]]:
    """What gunicorn would be told, and why that cannot be known."""
    kept = os.environ.get(METRICS_DIRECTORY)
    os.environ[METRICS_DIRECTORY] = os.devnull  # the file would make a directory
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            values: dict[str, Any] = {**runpy.run_path(str(_GUNICORN_CONFIG)), **_command_arguments()}
    except SystemExit:
        return Server(), [(output.getvalue().strip().splitlines() or ["gunicorn's settings are refused"])[-1]]
    except Exception as error:  # the edge to a file that anybody may edit
        return Server(), [f"gunicorn's settings cannot be read: {error}"]
    finally:
        os.environ.pop(METRICS_DIRECTORY)
        if kept is not None:
            os.environ[METRICS_DIRECTORY] = kept
    known = {name: values[name] for name in _GUNICORN_NAMES if name in values}
    bind = known.get("bind", Server.bind)
    return Server(**{**known, "bind": (bind,) if isinstance(bind, str) else tuple(bind)}), []


def _command_arguments() -> dict[str, Any]:
    if not os.environ.get("GUNICORN_CMD_ARGS"):
        return {}
    from gunicorn.config import Config  # now: most have no need of it, and each start waits for it

    config = Config(prog="GUNICORN_CMD_ARGS")
    arguments = vars(config.parser().parse_args(config.get_cmd_args_from_env()))
    return {name: value for name, value in arguments.items() if value is not None}
