"""The sandbox as a program: latency, TLS, start, stop, its command."""

import errno
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import requests
import trustme
from asking import AN_HOUR_MS, KEY, ROOT, ask, choice, connect, raw_request, read_all, read_half
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import SandboxConfig, running, start_in_thread
from deepseek_client.sandbox.__main__ import main
from deepseek_client.sandbox.server import SandboxServer


def test_entry_overrides_the_latency(http_):
    """latency_ms of an entry replaces the sandbox's own, for faults and for normal replies."""
    with running(SandboxConfig(port=0, latency_ms=AN_HOUR_MS)) as sandbox:
        faults = ({"fault": "ok"}, {"fault": "status", "status": 500}, {"fault": "close_after_reply"})
        sandbox.script([{**fault, "latency_ms": 0} for fault in faults])
        assert [ask(http_, sandbox).status_code for _ in faults] == [200, 500, 200]


def test_what_has_arrived_counts():
    """A request that lies in the sandbox's socket when it is asked for its stats, or reset, counts as received."""
    for forgets in (False, True):
        with running() as sandbox, socket.create_connection(("127.0.0.1", sandbox.port)) as caller:
            is_free = threading.Event()
            sandbox._loop.call_soon_threadsafe(is_free.wait, GIVE_UP_S)
            caller.sendall(raw_request())
            threading.Timer(0.05, is_free.set).start()  # while the line below waits
            if forgets:
                sandbox.reset()
            assert sandbox.stats()["requests"] == (0 if forgets else 1)


def test_long_wait_drips_blank_lines(http_):
    """A reply that takes longer than the interval is preceded by blank lines, without a Content-Length."""
    with running(SandboxConfig(port=0, latency_ms=50, blank_line_every_s=0.015)) as sandbox:
        response = ask(http_, sandbox)
    assert response.content.startswith(b"\n\n\n{")
    assert "Content-Length" not in response.headers
    assert choice(response)["message"]["content"] == "沙盒已收到：「测试提示词 7」"


def test_lognormal_latency_has_its_median():
    """With a sigma the latency varies around a median of latency_ms; without one it is constant."""
    random.seed(7)
    varied = SandboxServer(SandboxConfig(latency_ms=100, latency_sigma=0.5))
    samples = [varied._latency_s() for _ in range(4001)]
    assert statistics.median(samples) == pytest.approx(0.1, rel=0.05)
    assert statistics.quantiles(samples, n=100)[83] == pytest.approx(0.1 * 2.718281828**0.5, rel=0.1)
    assert SandboxServer(SandboxConfig(latency_ms=100))._latency_s() == 0.1


def test_idle_connection_is_closed():
    """A kept connection that stays idle is closed by the server without a word."""
    config = SandboxConfig(port=0, latency_ms=0, keep_alive_s=0.01)
    with running(config) as sandbox, connect(sandbox, raw_request()) as sock:
        received, ended = read_all(sock)
    assert ended == "fin"
    assert b"connection: close" not in received.lower()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Paths of a CA, a certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    paths = [str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem")]
    ca.cert_pem.write_to_path(paths[0])
    issued.cert_chain_pems[0].write_to_path(paths[1])
    issued.private_key_pem.write_to_path(paths[2])
    return paths


def test_tls(certificate, http_):
    """With a certificate the sandbox speaks HTTPS and says so in its URL; breaking works there too."""
    ca, certfile, keyfile = certificate
    http_.verify = ca
    with running(SandboxConfig(port=0, latency_ms=0, certfile=certfile, keyfile=keyfile)) as sandbox:
        assert sandbox.url == f"https://127.0.0.1:{sandbox.port}"
        assert ask(http_, sandbox).status_code == 200
        for fault in ("reset_before_reply", "close_before_reply"):
            sandbox.script([{"fault": fault}])
            with pytest.raises(requests.ConnectionError):
                ask(http_, sandbox)
        for fault in ("reset_in_body", "cut_body"):
            sandbox.script([{"fault": fault}])
            with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
                ask(http_, sandbox)


def test_stop_ends_hanging_calls():
    """stop() cuts a call that hangs, ends the thread, may be called twice, and leaves nothing to ask."""
    threads_before = set(threading.enumerate())
    sandbox = start_in_thread()
    sandbox.script([{"fault": "hang"}])
    with connect(sandbox, raw_request()) as sock:
        sandbox.wait_until(lambda stats: stats["in_flight"] == 1)
        sandbox.stop()
        assert read_all(sock)[0] == b""
    sandbox.stop()
    assert set(threading.enumerate()) <= threads_before
    with pytest.raises(RuntimeError, match="stopped"):
        sandbox.stats()


def test_port_in_use_reaches_the_caller(sandbox):
    """A port that is taken raises OSError in the thread that starts the sandbox."""
    with pytest.raises(OSError, match="in use"):
        start_in_thread(SandboxConfig(port=sandbox.port))


def test_localhost_is_one_address(http_):
    """localhost is served at 127.0.0.1, so that one port is enough."""
    with running(SandboxConfig(host="localhost", port=0, latency_ms=0)) as sandbox:
        assert sandbox.url == f"http://127.0.0.1:{sandbox.port}"
        assert ask(http_, sandbox).status_code == 200


def test_key_is_not_in_the_repr():
    """A config can be logged: its key is not shown."""
    assert KEY not in repr(SandboxConfig(api_key=KEY))


@contextmanager
def command(*arguments, stdin=subprocess.DEVNULL):
    """The command in a process of its own, with its first line of output."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "deepseek_client.sandbox", "--port", "0", *arguments],
        cwd=ROOT,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        banner = process.stdout.readline()
        yield process, banner
    finally:
        process.kill()
        process.communicate(timeout=GIVE_UP_S)


def url_in(banner):
    url, _, rest = banner.removeprefix("sandbox: ").partition(" ")
    assert rest == "speaks the DeepSeek API with canned replies; this is not DeepSeek\n"
    return url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signal_stops_it_with_a_hanging_call(number, http_):
    """SIGTERM and SIGINT end the process with 0 and without a word, although a call hangs."""
    with command("--latency-ms", "0") as (process, banner):
        url = url_in(banner)
        http_.post(url + "/sandbox/script", json={"replies": [{"fault": "hang_in_body"}]}, timeout=GIVE_UP_S)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=GIVE_UP_S) as sock:
            sock.sendall(raw_request())
            read_half(sock)
            process.send_signal(number)
            assert process.wait(timeout=GIVE_UP_S) == 0
        assert process.stderr.read() == ""


def test_exit_on_eof():
    """With --exit-on-eof the process ends with 0 when its standard input does."""
    with command("--exit-on-eof", stdin=subprocess.PIPE) as (process, banner):
        assert url_in(banner)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=GIVE_UP_S) == 0
        process.stdin = None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "host='0.0.0.0': need a loopback address"),
        (["--host", "example.com"], "host='example.com': need a loopback address"),
        (["--port", "http"], "--port: invalid int value: 'http'"),
        (["--port", "70000"], "port=70000: need a whole number from 0 to 65535"),
        (["--latency-ms", "-1"], "latency_ms=-1.0: need"),
        (["--latency-ms", "nan"], "latency_ms=nan: need"),
        (["--latency-sigma", "-1"], "latency_sigma=-1.0: need"),
        (["--concurrency", "0"], "concurrency=0: need"),
        (["--keep-alive-s", "0"], "keep_alive_s=0.0: need"),
        (["--blank-line-every-s", "0"], "blank_line_every_s=0.0: need"),
        (["--keyfile", "key.pem"], "keyfile='key.pem': need certfile beside it"),
        (["--certfile", "missing.pem"], "certfile='missing.pem', keyfile='': cannot load:"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_arguments(arguments, said, capsys):
    """A wrong argument exits with 2 and one line that names it."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.err.startswith("sandbox: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_port_in_use(sandbox, capsys):
    """A port that is taken exits with 1 and one line that names the address."""
    assert main(["--port", str(sandbox.port)]) == 1
    said = f"sandbox: cannot listen on 127.0.0.1:{sandbox.port}: {os.strerror(errno.EADDRINUSE)}\n"
    assert capsys.readouterr().err == said


def test_help(capsys):
    """--help exits with 0 and names every option."""
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for name in (*SandboxConfig.__dataclass_fields__, "exit_on_eof"):
        assert f"--{name.replace('_', '-')}" in shown
