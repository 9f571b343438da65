"""Sandboxes to which no connection is kept yet, over HTTP and over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from deepseek_client.sandbox import RunningSandbox, SandboxConfig, running


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificate of a server on this machine, and that of its authority."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return folder


@pytest.fixture(params=["http", "https"])
def fresh_box(
    request: pytest.FixtureRequest, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningSandbox]:
    """A sandbox of the test's own, over HTTP, then over HTTPS with a certificate that is verified."""
    certfile = ""
    if request.param == "https":
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates / "ca.pem"))
        certfile = str(certificates / "server.pem")
    with running(SandboxConfig(port=0, latency_ms=0, certfile=certfile)) as sandbox:
        yield sandbox
