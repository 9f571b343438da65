"""What the doctor looks at: the settings as the server of this directory reads them, and where they come from."""

from __future__ import annotations

import io
import os
import re
import resource
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv.parser import Binding, parse_stream

from ...errors import ConfigError
from ...settings import Settings
from ...settings_file import check_token_line, env_text, values_in
from .. import deployment
from ..gunicorn_command import Command
from ..refusal import Refusal

__all__ = ["Server", "Situation", "read"]

_OF_CONTAINERS = ("/.dockerenv", "/run/.containerenv")  # Docker's mark, and Podman's
_CGROUPS = Path("/proc/1/cgroup")
_CONFIG = os.path.join("webapp", "gunicorn.conf.py")
_CLONE = Path(__file__).parents[3]


@dataclass(frozen=True)
class Server:
    """What gunicorn is told: by its command line, GUNICORN_CMD_ARGS and its configuration file.

    Threads: immutable.
    """

    bind: tuple[str, ...] = ("127.0.0.1:5000",)
    workers: int = 2
    threads: int = 1
    worker_class: str = "sync"
    timeout: float = 35
    graceful_timeout: float = 30
    keepalive: float = 2
    preload_app: bool = False

    @property
    def is_sync(self) -> bool:
        """Whether a worker serves one request at a time, and is silent to its master meanwhile."""
        return self.worker_class == "sync" and self.threads <= 1


@dataclass(frozen=True)
class Situation:
    """Everything that findings are derived from.

    Attributes:
        process: the process environment of the server, or of this process where none runs.
        file: what `.env` in the current directory sets.
        refusals: a sentence for each setting that cannot be read.
        unread_lines: lines of `.env` that are no assignment.
        repeated: names that `.env` assigns more than once.
        blanked: names that `.env` gives a value and makes blank further down.
        settings: the readable ones; defaults stand in for the rest.
        server: what gunicorn is told, None if that is not known.
        masters: the gunicorns that run here.
        is_webapp: whether it is our own application, which reads settings of its own.
        hosts: how many machines serve with these settings.
        open_files: how many files a process may have open.
        is_container: whether this is a container, which something outside stops.

    Threads: immutable.
    """

    process: Mapping[str, str] = field(repr=False)
    file: Mapping[str, str] = field(repr=False)
    refusals: tuple[str, ...] = field(repr=False)
    unread_lines: tuple[int, ...]
    repeated: tuple[str, ...]
    blanked: tuple[str, ...]
    settings: Settings
    server: Server | None
    masters: frozenset[int]
    is_webapp: bool
    hosts: int
    open_files: int
    is_container: bool

    def get(self, name: str) -> str:
        """Returns a variable as the server sees it: its environment comes before `.env`; "" when it is not set."""
        return self.process.get(name, self.file.get(name, "")).strip()


def read(hosts: int = 1) -> list[Situation]:
    """Returns the situation of each server of the current directory, or of one that would start; changes nothing."""
    file, bindings, refusals = _env_file()
    names = Counter(binding.key for binding in bindings if binding.key)
    given = {binding.key for binding in bindings if binding.key and (binding.value or "").strip()}
    running = _running(file)
    situations = []
    for master, process, command in _examined(running):
        settings, wrong = _settings({**file, **process, **_in_config(running, master)})
        server, wrong_options = (None, []) if refusals else _options(command)
        by_name = {text.partition("=")[0]: text for text in [*wrong_options, *wrong, *refusals]}
        situation = Situation(
            process=process,
            file=file,
            refusals=tuple(by_name.values()),
            unread_lines=tuple(binding.original.line for binding in bindings if binding.error),
            repeated=tuple(sorted(name for name in names if names[name] > 1)),
            blanked=tuple(sorted(name for name in given if not file.get(name, "").strip())),
            settings=settings,
            server=server,
            masters=frozenset(server.pid for server in running),
            is_webapp=_is_webapp(),
            hosts=hosts,
            open_files=_open_files(master),
            is_container=_is_container(),
        )
        situations.append(situation)
    return situations


def _running(file: Mapping[str, str]) -> list[deployment.Server]:
    try:
        return deployment.Deployment(file).servers
    except Refusal:  # no /proc, or somebody else's
        return []


def _in_config(running: list[deployment.Server], master: int) -> Mapping[str, str]:
    """What the application of a server sets itself, as one of its workers has said."""
    told = [said for server in running if server.pid == master for said in server.told().values()]
    return next((said.config for said in told if said), {})


def _examined(running: list[deployment.Server]) -> list[tuple[int, Mapping[str, str], Command | None]]:
    """Masters with their variables and commands; in a clone of ours what would start, whatever runs."""
    ours = dict(os.environ)
    if _is_webapp():
        words = (sys.executable, "-m", "gunicorn", "-c", _CONFIG, "webapp.wsgi:app")
        return [(0, ours, Command(words, ours, os.path.realpath(".")))]
    return [(server.pid, server.command.environ, server.command) for server in running] or [(0, ours, None)]


def _is_webapp() -> bool:
    """Whether this directory holds our own application, and not one that happens to have the same name."""
    try:
        return os.path.samefile(_CONFIG, _CLONE / _CONFIG)
    except OSError:
        return False


def _env_file() -> tuple[dict[str, str], list[Binding], list[str]]:
    """Its values, its lines, and why it cannot be read."""
    try:
        text = env_text() or ""
    except ConfigError as error:
        return {}, [], [str(error)]
    try:
        check_token_line(text)
        refusals = []
    except ConfigError as error:
        refusals = [str(error)]
    return values_in(text), list(parse_stream(io.StringIO(text))), refusals


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


def _options(command: Command | None) -> tuple[Server | None, list[str]]:
    """What gunicorn is told, and why that cannot be known."""
    if command is None or not command.words:
        return None, []
    try:
        options: dict[str, Any] = command.options()
        bind = options["bind"]
        return Server(
            bind=(bind,) if isinstance(bind, str) else tuple(bind),
            workers=int(options["workers"]),
            threads=int(options["threads"]),
            worker_class=str(options["worker_class"]),
            timeout=float(options["timeout"]),
            graceful_timeout=float(options["graceful_timeout"]),
            keepalive=float(options["keepalive"]),
            preload_app=bool(options["preload_app"]),
        ), []
    except Refusal as refusal:
        return None, [str(refusal)]
    except (KeyError, TypeError, ValueError) as error:
        return None, [f"gunicorn's options cannot be read: {error!r}"]


def _open_files(master: int) -> int:
    try:
        return resource.prlimit(master, resource.RLIMIT_NOFILE)[0]
    except (AttributeError, OSError):  # not Linux; it has ended, or is somebody else's
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _is_container() -> bool:
    if any(os.path.exists(mark) for mark in _OF_CONTAINERS):
        return True
    try:
        return re.search("docker|containerd|kubepods|libpod", _CGROUPS.read_text()) is not None
    except OSError:
        return False
