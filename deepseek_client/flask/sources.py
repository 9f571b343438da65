"""Where an application's settings come from: app.config, the process environment, the `.env` of the directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from flask import Flask

from deepseek_client import ConfigError

from ..settings import nearest_setting
from ..settings_file import read_env_file
from .gunicorn_leaving import gunicorn_worker

__all__ = ["Sources"]

_SWITCH = "USE_ASYNC_DEEPSEEK"
_PREFIXES = ("LLM_", "DEEPSEEK_", "USE_ASYNC")
_NO_SECRETS = (
    _SWITCH,
    "DEEPSEEK_TRANSPORT",
    "LLM_ACCOUNT_LIMIT",
    "LLM_DEADLINE_S",
    "LLM_ENGINE",
    "LLM_MAX_ATTEMPTS",
    "LLM_MAX_WORKERS",
    "LLM_QUEUE_LIMIT",
    "LLM_READ_TIMEOUT_S",
)


class Sources(Mapping[str, str]):
    """The variables as they are now; reads `.env` without changing the environment.

    Under gunicorn the rollback switch of `.env` comes before one that gunicorn's configuration has put into the
    environment. That is `.env` as it was: `load_dotenv()` does it at the start, and changes nothing at a reload.

    A blank value in `app.config` is none: `os.getenv(name, "")` is often written there.

    Raises:
        ConfigError: `.env` is there and cannot be read.

    Threads: one thread reads.
    """

    def __init__(self, app: Flask) -> None:
        self._config = app.config
        self._asked: set[str] = set()
        in_file = read_env_file()
        self._env: dict[str, str] = {**in_file, **os.environ}
        if _SWITCH in in_file and _has_gunicorn_loaded(_SWITCH):
            self._env[_SWITCH] = in_file[_SWITCH]

    def __getitem__(self, name: str) -> str:
        self._asked.add(name)
        text = _text_of(name, self._config.get(name))
        return text if text.strip() else self._env[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._env, **self._config})

    def __len__(self) -> int:
        return len({**self._env, **self._config})

    def misspelt(self) -> list[tuple[str, str]]:
        """Names in `app.config` that nobody has asked for, each with one like it that was asked for and is not set."""
        names = [name for name in self._config if isinstance(name, str) and name.startswith(_PREFIXES)]
        unset = sorted(name for name in self._asked if not str(self._config.get(name) or "").strip())
        meant = {name: nearest_setting(name, unset) for name in sorted({*names} - self._asked)}
        # A word more is a name of its own.
        return [(name, other) for name, other in meant.items() if other and not name.startswith(f"{other}_")]

    def in_config(self) -> dict[str, str]:
        """What of the settings stands in `app.config`, but for those that are or may hold a secret."""
        texts = {name: _text_of(name, self._config.get(name)) for name in _NO_SECRETS}
        return {name: text for name, text in texts.items() if text.strip()}


def _text_of(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ConfigError(f"{name} in app.config is a {type(value).__name__}: need a text or a number")


def _has_gunicorn_loaded(name: str) -> bool:
    """Whether this worker has a variable that neither its gunicorn was started with nor `raw_env` gives."""
    worker = gunicorn_worker()
    if worker is None or name in worker.cfg.env:
        return False
    try:
        with open("/proc/self/environ", "rb") as file:
            names = {
                os.fsdecode(entry.partition(b"=")[0]) for entry in file.read().split(b"\0") if b"=" in entry
            }
    except OSError:
        return False
    # Nothing is left of it where setproctitle has written over it.
    return bool(names) and name not in names
