"""What the console knows of the deployment: the settings of its `.env` as they are now, and where it serves."""

from __future__ import annotations

import os
from dataclasses import dataclass

from deepseek_client import Settings
from deepseek_client.settings_file import read_env_file

__all__ = ["Configuration", "environment"]


def environment() -> dict[str, str]:
    """Returns the variables of `.env` and of the process, which win.

    Raises:
        ConfigError: `.env` is there and cannot be read.
    """
    return {**read_env_file(), **os.environ}


@dataclass(frozen=True)
class Configuration:
    """Where the application is.

    Attributes:
        application: its address; "" for that of HOST and PORT.
        threads: requests that each of its worker processes takes at a time; 0 if that is not known.
        master: the server whose workers are shown; 0 for all of the directory.
        hosts: names by which the console may be called, beside those of loopback.

    Threads: immutable.
    """

    application: str = ""
    threads: int = 0
    master: int = 0
    hosts: tuple[str, ...] = ()

    def address(self) -> str:
        """Returns where the application serves."""
        if self.application:
            return self.application
        env = environment()
        host = (env.get("HOST") or "").strip() or "127.0.0.1"
        # Who listens everywhere can be reached here.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        port = (env.get("PORT") or "").strip() or "5000"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def settings(self) -> Settings:
        """Returns the settings that a reload of the server would read now.

        Raises:
            ConfigError: one is wrong, or `.env` cannot be read.
        """
        return Settings.from_env(environment())
