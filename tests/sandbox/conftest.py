import pytest
import requests

from deepseek_client.sandbox import SandboxConfig, running


@pytest.fixture(scope="module")
def shared():
    with running(SandboxConfig(port=0, latency_ms=0)) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared):
    """The shared sandbox, as new."""
    shared.reset()
    yield shared
    shared.wait_until(lambda stats: stats["in_flight"] == 0)


@pytest.fixture
def http_():
    with requests.Session() as session:
        session.trust_env = False
        yield session
