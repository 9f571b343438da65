"""The legacy client, and the network that it meets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import responses
from support.legacy import KEY

from deepseek_client import DeepSeekClient


@pytest.fixture
def api() -> Iterator[responses.RequestsMock]:
    """The network; a request that no test registered is refused."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as api:
        yield api


@pytest.fixture
def client() -> DeepSeekClient:
    """A client with a key."""
    return DeepSeekClient(KEY)
