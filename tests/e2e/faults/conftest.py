"""An API that fails, and calls that wait for nothing between their attempts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import trustme
from support.entries import QUEUE_LIMIT, WORKERS
from support.faults import NOW

from deepseek_client import Settings, WorkerPool
from deepseek_client.calls import ending
from deepseek_client.calls import retries as policy
from deepseek_client.sandbox import SandboxConfig, running
from deepseek_client.wire import adapter as transport
from deepseek_client.wire import failures


@pytest.fixture(autouse=True)
def fresh_connections(sandbox):
    """No connection is kept from an earlier test: the transport would send a request that it loses once more."""
    transport._shared_adapter().close()


@pytest.fixture(autouse=True)
def a_day(monkeypatch):
    """An HTTP date is read at a known time."""
    monkeypatch.setattr(failures, "time", SimpleNamespace(time=lambda: NOW))


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """What calls would wait between attempts, in seconds, each random part the whole; nothing waits."""
    noted: list[float] = []

    async def note(wait_s: float, pool: WorkerPool) -> None:
        noted.append(wait_s)

    monkeypatch.setattr(ending, "back_off", note)
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: high)
    return noted


@pytest.fixture(scope="module")
def addresses(shared_sandbox, tmp_path_factory) -> Iterator[dict[str, str]]:
    """Where a fault is met."""
    certificate = tmp_path_factory.mktemp("tls") / "server.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    with (
        socket.socket() as nobody,
        running(SandboxConfig(port=0, latency_ms=0, certfile=str(certificate))) as untrusted,
    ):
        nobody.bind(("127.0.0.1", 0))  # and never listens
        yield {
            "sandbox": shared_sandbox.url,
            "nobody": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "plain": f"https://127.0.0.1:{shared_sandbox.port}",
            "untrusted": untrusted.url,
        }


@pytest.fixture
def settings(addresses) -> Settings:
    return Settings(
        api_key="sk-test", base_url=addresses["sandbox"], max_workers=WORKERS, queue_limit=QUEUE_LIMIT
    )
