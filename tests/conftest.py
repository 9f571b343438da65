"""What several test modules share: how long a test waits for what must happen, and a sandbox."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.serving import Server

from deepseek_client import Settings
from deepseek_client.sandbox import RunningSandbox, SandboxConfig, running

GIVE_UP_S = 5.0
"""Bound of every wait: long on a busy machine, short when a test hangs."""

_OF_THE_MACHINE = ("LLM_", "DEEPSEEK_", "USE_ASYNC", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PROMETHEUS_")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs an `async def` test on an event loop of its own, and ends it when it hangs."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), 6 * GIVE_UP_S))
    return True


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what the machine's environment says about this project, its proxies or its trust."""
    for name in list(os.environ):
        if name.startswith(_OF_THE_MACHINE) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[RunningSandbox]:
    with running(SandboxConfig(port=0, latency_ms=0)) as box:
        yield box


@pytest.fixture
def sandbox(shared_sandbox: RunningSandbox) -> RunningSandbox:
    """A sandbox that answers at once, with counters at zero and nothing scripted."""
    shared_sandbox.reset()
    return shared_sandbox


@pytest.fixture
def settings(sandbox: RunningSandbox) -> Settings:
    """Settings that send calls to the sandbox, each once."""
    upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}
    return Settings.from_env({**upstream, "LLM_MAX_ATTEMPTS": "1"})


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Any], None]], Server]]:
    """Starts HTTP servers that answer by a function, and ends them with the test."""
    servers: list[Server] = []

    def start(answer: Callable[[Any], None]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
