"""Sandboxes over HTTP and over TLS, some of them without a kept connection, and watched sockets."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trustme
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import RunningSandbox, SandboxConfig, running
from deepseek_client.wire import sockets


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


@pytest.fixture(scope="module")
def tls_sandbox(certificates: Path) -> Iterator[RunningSandbox]:
    """A sandbox over HTTPS; `ca` is the file of its authority, and `server_context` what such a server has."""
    certfile = str(certificates / "server.pem")
    with running(SandboxConfig(port=0, latency_ms=0, certfile=certfile)) as box:
        box.ca = str(certificates / "ca.pem")
        box.server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        box.server_context.load_cert_chain(certfile)
        yield box


@pytest.fixture(params=["http", "https"])
def box(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RunningSandbox:
    """The sandbox over HTTP, then over HTTPS with a certificate that is verified."""
    if request.param == "http":
        return request.getfixturevalue("sandbox")
    found = request.getfixturevalue("tls_sandbox")
    found.reset()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", found.ca)
    return found


@pytest.fixture
def installed() -> None:
    """Sockets that connect in a call are watched."""
    sockets.install()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server's socket on this machine."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(GIVE_UP_S)
        yield listener
