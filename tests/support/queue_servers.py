"""The servers on which tasks are tested: the newest that we bring, and the oldest that Debian has."""

from __future__ import annotations

import os
import shutil

import pytest

from deepseek_client.tasks import broker

PROGRAMS = ("valkey", "redis")


def program(name: str) -> str:
    """The path of a server; skips the test where it is missing, or fails it where CI is set."""
    found = broker.server_program() if name == "valkey" else shutil.which("redis-server")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("redis-server is not installed")
    return found
