"""What several test modules share: how long a test waits for what must happen, and a sandbox."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import package
from support.patience import GIVE_UP_S
from support.queue_server import QueueServer
from support.queue_servers import PROGRAMS, program
from support.serving import Server

from deepseek_client import Settings, call_options
from deepseek_client.sandbox import RunningSandbox, SandboxConfig, running
from deepseek_client.settings import ENGINES

# A shell that runs the suite in the background has these ignored, by the processes that tests start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

_HANDLERS = {
    number: signal.getsignal(number)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGURG)
}

_OF_THE_MACHINE = (
    *("LLM_", "DEEPSEEK_", "USE_ASYNC", "CELERY_", "TASK_", "WORKER_"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PROMETHEUS_"),
)


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
    # For child processes what setup.cfg says for this one: a fork beside threads is meant.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:This process (pid=:DeprecationWarning")


@pytest.fixture(autouse=True)
def own_signal_handlers() -> Iterator[None]:
    """No test meets the handlers of an application that another one has made, be it in a fixture of the session."""
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)
    yield
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """What is there before the first test is not looked through after each module."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def forgotten_things_are_reported_here() -> Iterator[None]:
    """A socket or file that a test leaves open fails its own module, and not a later one that collects garbage."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> package.Distributions:
    """The sdist and the wheel of this tree."""
    return package.build(tmp_path_factory.mktemp("distributions"))


@pytest.fixture(scope="session")
def installed_python(distributions: package.Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel, and no part of this tree."""
    return package.install(distributions.wheel, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[RunningSandbox]:
    with running(SandboxConfig(port=0, latency_ms=0)) as box:
        yield box


@pytest.fixture
def sandbox(shared_sandbox: RunningSandbox) -> RunningSandbox:
    """A sandbox that answers at once, with counters at zero, nothing scripted, and no request of an earlier test."""
    shared_sandbox.wait_until(lambda stats: stats["in_flight"] == 0)
    shared_sandbox.reset()
    return shared_sandbox


@pytest.fixture
def settings(sandbox: RunningSandbox) -> Settings:
    """Settings that send calls to the sandbox, each once."""
    upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}
    return Settings.from_env({**upstream, "LLM_MAX_ATTEMPTS": "1"})


@pytest.fixture(scope="session", params=PROGRAMS)
def shared_queue(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[QueueServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_QUEUE_SERVER", program(request.param))
        server = QueueServer(tmp_path_factory.mktemp("queue"))
    yield server
    server.close()


@pytest.fixture
def queue(shared_queue: QueueServer) -> QueueServer:
    """The server of a queue, with nothing in it: the newest and, once more, the oldest that is tested."""
    shared_queue.client().flushall()
    return shared_queue


@pytest.fixture
def own_queue(tmp_path: Path) -> Iterator[QueueServer]:
    """A server that a test may freeze, fill and kill."""
    directory = tmp_path / "queue"
    directory.mkdir()
    server = QueueServer(directory)
    yield server
    server.close()


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


@pytest.fixture(params=ENGINES)
def each_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs once on each engine: threads of the pool, and greenlets on the event loop."""
    with call_options(engine=request.param):
        yield request.param
