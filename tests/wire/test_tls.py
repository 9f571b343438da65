"""Trust: each setting of `requests` is honoured, verification is never lost, and each context is loaded once."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import trustme
import urllib3
from support.patience import GIVE_UP_S
from support.serving import exchanged

from deepseek_client import AsyncDeepSeekClient, ConfigError, ConnectionFailed, Settings
from deepseek_client.wire import tls
from deepseek_client.wire.exchange import Exchange


@contextmanager
def https(certificate: trustme.LeafCert, client_authority: trustme.CA | None = None) -> Iterator[str]:
    """A server that answers every connection once, by its certificate; it may want one of its client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        client_authority.configure_trust(context)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # the test is over
                return
            try:
                with context.wrap_socket(connection, server_side=True) as stream:
                    stream.settimeout(GIVE_UP_S)
                    stream.recv(65536)
                    stream.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            except OSError:  # the client refused the certificate
                connection.close()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(GIVE_UP_S)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two authorities; a client certificate of the first, as one file and as two; paths of all."""
    folder = tmp_path_factory.mktemp("trust")
    good, other = trustme.CA(), trustme.CA()
    good.cert_pem.write_to_path(str(folder / "good.pem"))
    other.cert_pem.write_to_path(str(folder / "other.pem"))
    client = good.issue_cert("player@example.test")
    client.private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
    client.private_key_pem.write_to_path(str(folder / "client.key"))
    client.cert_chain_pems[0].write_to_path(str(folder / "client.crt"))
    return SimpleNamespace(folder=folder, good=good, other=other, **{
        path.name.replace(".", "_"): str(path) for path in folder.iterdir()
    })  # fmt: skip


@pytest.fixture(scope="module")
def server(files: SimpleNamespace) -> Iterator[str]:
    with https(files.good.issue_cert("127.0.0.1")) as url:
        yield url


@pytest.fixture(autouse=True)
def fresh_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_contexts", {})


def get(url: str, **options: Any) -> Exchange:
    return exchanged(requests.get, url, timeout=GIVE_UP_S, **options)


class TestTrust:
    """Whom a call trusts is what `requests` says."""

    def test_the_default_bundle_does_not_know_a_test_authority(self, server):
        """Without any setting the certifi bundle counts, and a certificate of another authority is refused."""
        assert isinstance(get(server).error, requests.exceptions.SSLError)

    @pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
    def test_a_bundle_of_the_environment(self, server, files, monkeypatch, variable):
        """The environment's bundle replaces the default one, and a wrong one refuses."""
        monkeypatch.setenv(variable, files.good_pem)
        assert get(server).status == 200
        monkeypatch.setenv(variable, files.other_pem)
        assert isinstance(get(server).error, requests.exceptions.SSLError)

    def test_a_file_of_the_call(self, server, files):
        """verify="path" trusts that file alone."""
        assert get(server, verify=files.good_pem).status == 200
        assert isinstance(get(server, verify=files.other_pem).error, requests.exceptions.SSLError)

    def test_a_folder_of_the_call(self, server, files, tmp_path):
        """verify="folder" trusts the authorities that OpenSSL finds in it by their hash."""
        name = subprocess.run(
            ["openssl", "x509", "-hash", "-noout", "-in", files.good_pem],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        assert isinstance(get(server, verify=str(tmp_path)).error, requests.exceptions.SSLError)
        shutil.copy(files.good_pem, tmp_path / f"{name}.0")
        assert get(server, verify=str(tmp_path)).status == 200

    @pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
    def test_no_verification_only_where_the_client_says_so(self, server, files):
        """verify=False takes any certificate, and leaves the next call's verification as it is."""
        assert get(server, verify=False).status == 200
        assert isinstance(get(server).error, requests.exceptions.SSLError)
        assert isinstance(get(server, verify=files.other_pem).error, requests.exceptions.SSLError)

    def test_no_verification_still_warns(self, server):
        """urllib3's warning about an unverified request is not lost."""
        with pytest.warns(urllib3.exceptions.InsecureRequestWarning):
            get(server, verify=False)

    @pytest.mark.parametrize("form", ["one file", "two files"])
    def test_a_client_certificate(self, files, form):
        """cert= is shown to a server that wants one, and without it that server refuses."""
        cert = files.client_pem if form == "one file" else (files.client_crt, files.client_key)
        with https(files.good.issue_cert("127.0.0.1"), client_authority=files.good) as url:
            assert get(url, verify=files.good_pem, cert=cert).status == 200
            assert get(url, verify=files.good_pem).error is not None

    def test_a_certificate_for_another_host_after_a_good_one(self, server, files):
        """A context that has just accepted one server refuses a certificate of the same authority for another."""
        with https(files.good.issue_cert("elsewhere.example.test")) as wrong:
            for _ in range(2):
                assert get(server, verify=files.good_pem).status == 200
                assert isinstance(get(wrong, verify=files.good_pem).error, requests.exceptions.SSLError)
        assert len(tls._contexts) == 1

    def test_a_foreign_certificate_after_a_good_one(self, server, files):
        """The same context refuses a certificate of an authority that it does not know."""
        with https(files.other.issue_cert("127.0.0.1")) as foreign:
            for _ in range(2):
                assert get(server, verify=files.good_pem).status == 200
                assert isinstance(get(foreign, verify=files.good_pem).error, requests.exceptions.SSLError)
        assert len(tls._contexts) == 1

    def test_a_refused_certificate_is_connection_failed(self, server):
        """A call to a server that is not trusted is ConnectionFailed, and the request never left."""
        client = AsyncDeepSeekClient(settings=Settings(api_key="k", base_url=server), errors="raise")
        with pytest.raises(ConnectionFailed, match="The certificate of the API is not trusted"):
            client.chat("hi")
        assert not get(server).sent


class TestContexts:
    """A context costs 20 ms: each trust setting has one."""

    def test_ten_calls_load_once(self, server, files, monkeypatch):
        """Ten connections of one trust setting share one context."""
        loaded: list[Any] = []
        load = tls._load
        monkeypatch.setattr(tls, "_load", lambda *paths: loaded.append(paths) or load(*paths))
        for _ in range(10):
            assert get(server, verify=files.good_pem).status == 200
        assert loaded == [(files.good_pem, None, None)]

    def test_threads_at_once_load_once(self, files, monkeypatch):
        """Many first calls at the same moment wait for one load."""
        loaded: list[Any] = []
        load = tls._load
        meeting = threading.Barrier(8, timeout=GIVE_UP_S)

        def ask() -> None:
            meeting.wait()
            tls.context_for(files.good_pem, None)

        monkeypatch.setattr(tls, "_load", lambda *paths: loaded.append(paths) or load(*paths))
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GIVE_UP_S)
        assert len(loaded) == 1

    def test_a_renewed_file_is_loaded(self, server, files, tmp_path):
        """A bundle that is replaced on disk counts from the next connection on, as `requests` has it."""
        bundle = tmp_path / "bundle.pem"
        shutil.copy(files.other_pem, bundle)
        assert isinstance(get(server, verify=str(bundle)).error, requests.exceptions.SSLError)
        shutil.copy(files.good_pem, tmp_path / "new.pem")
        os.replace(tmp_path / "new.pem", bundle)
        assert get(server, verify=str(bundle)).status == 200
        assert len(tls._contexts) == 1

    @pytest.mark.parametrize(
        "options",
        [
            {"verify": "/missing/ca.pem"},
            {"cert": "/missing/client.pem"},
            {"cert": (__file__, "/missing/key.pem")},
        ],
        ids=["bundle", "certificate", "key"],
    )
    def test_a_missing_file_is_an_error_as_requests_words_it(self, server, options):
        """A path that does not exist raises what `requests` raises, and is recorded."""
        with pytest.raises(OSError, match="invalid path") as expected:
            requests.get(server, timeout=GIVE_UP_S, **options)
        assert str(get(server, **options).error) == str(expected.value)

    def test_a_file_that_is_no_certificate(self, server, monkeypatch):
        """A bundle without certificates is a ConfigError, named in the log and not in the message."""
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(Path(__file__)))
        client = AsyncDeepSeekClient(settings=Settings(api_key="k", base_url=server), errors="raise")
        with pytest.raises(ConfigError) as caught:
            client.chat("hi")
        assert "test_tls" not in str(caught.value)
        assert "test_tls" in str(caught.value.__cause__)
