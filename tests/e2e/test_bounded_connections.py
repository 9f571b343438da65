"""Connections that send nothing, or slowly, or are too many, against real gunicorns."""

import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest
import trustme
from support.patience import GIVE_UP_S

from deepseek_client.sandbox import running

ROOT = Path(__file__).parents[2]
CONF = ROOT / "webapp" / "gunicorn.conf.py"
PACE_S = 0.1  # between two bytes of a slow client
SYNC = {"WEB_CONCURRENCY": "2", "WEB_THREADS": "1"}
GTHREAD = {"WEB_CONCURRENCY": "1", "WEB_THREADS": "2"}
AT_ONCE = 2
CALLERS = 60  # at 2 s each, and with two workers, more than START_S
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00"

over_kinds = pytest.mark.parametrize("kind", [SYNC, GTHREAD], ids=["sync", "gthread"])
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to keep idle connections")


@pytest.fixture(scope="module")
def with_bounds(tmp_path_factory):
    """webapp's own configuration with other bounds."""

    def write(bounds):
        text = CONF.read_text(encoding="utf-8")
        assert "_head_s, _body_s = 5, 10" in text
        file = tmp_path_factory.mktemp("conf") / "bounds.conf.py"
        file.write_text(
            text.replace("_head_s, _body_s = 5, 10", f"_head_s, _body_s = {bounds}"), encoding="utf-8"
        )
        return file

    return write


@pytest.fixture(scope="module")
def conf(with_bounds):
    """webapp's own configuration with bounds of a second each."""
    return with_bounds("1, 1")


def start(serving, conf, kind, *before, **env):
    """gunicorn with this configuration; no call is made."""
    command = [*before, sys.executable, "-m", "gunicorn", "-c", str(conf), "webapp.wsgi:app"]
    return serving(
        command, **{"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": "http://127.0.0.1:9", **kind, **env}
    )


@pytest.fixture(scope="module", params=[SYNC, GTHREAD], ids=["sync", "gthread"])
def impatient(serving, conf, request):
    """A server of each kind with these bounds."""
    with start(serving, conf, request.param) as server:
        yield server


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), GIVE_UP_S)


def send_slowly(connection, first, then, is_over):
    """Sends the first bytes, and then the others again and again until the server has closed; what that has sent."""
    received = b""
    try:
        connection.sendall(first)
        connection.settimeout(PACE_S)
        while not is_over.is_set():
            try:
                more = connection.recv(4096)
            except TimeoutError:
                connection.sendall(then)
                continue
            received += more
            if not more:
                return received
    except OSError:  # reset: it has read no further
        return received
    return None


@over_kinds
def test_idle_connections(serving, kind):
    """Connections that send nothing hold no worker and no thread, with webapp's own bounds."""
    with start(serving, CONF, kind) as server, ExitStack() as stack:
        for _ in range(2 * AT_ONCE):
            stack.enter_context(connect(server))
        for _ in range(2 * AT_ONCE):
            assert server.get("/health").status_code == 200


def test_more_idle_connections_than_the_kernel_keeps(serving, with_bounds):
    """Idle connections beyond the kernel's queue cost a worker a second each, however long a head may take."""
    few = {"GUNICORN_CMD_ARGS": f"--backlog {AT_ONCE}", "WEB_CONCURRENCY": "1", "WEB_THREADS": "1"}
    with start(serving, with_bounds(f"{GIVE_UP_S}, 10"), few) as server, ExitStack() as stack:
        for _ in range(4 * AT_ONCE):
            idle = stack.enter_context(socket.socket())
            idle.setblocking(False)
            idle.connect_ex(("127.0.0.1", server.port))
        assert server.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("first", "then", "answer"),
    [
        (b"GET /health HTTP/1.1\r\nHost: x\r\n", b"X-More: x\r\n", b""),
        (b"GET /hea", b"l", b""),
        (b"POST /api/llm/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", b" ", b"HTTP/1.1 408 "),
        (
            b"POST /api/llm/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1\r\n \r\n",
            b"HTTP/1.1 408 ",
        ),
    ],
    ids=["headers", "request_line", "body", "chunks"],
)
def test_slow_clients(impatient, first, then, answer):
    """Whoever sends a head or a body byte by byte is given up, and others are served."""
    is_over = threading.Event()
    with ThreadPoolExecutor(AT_ONCE) as threads, ExitStack() as stack:
        stack.callback(is_over.set)
        slow = [
            threads.submit(send_slowly, stack.enter_context(connect(impatient)), first, then, is_over)
            for _ in range(AT_ONCE)
        ]
        received = [one.result(GIVE_UP_S) for one in slow]
        assert [got is not None and got.startswith(answer) for got in received] == [True] * AT_ONCE
        assert answer or received == [b""] * AT_ONCE
        assert impatient.get("/health").status_code == 200
        assert "Traceback" not in impatient.output.read_text()


def test_kept_connections(serving, conf):
    """Connections that gthread keeps hold no thread, and each of their requests has the whole time."""
    patient = {"GUNICORN_CMD_ARGS": f"--keep-alive {GIVE_UP_S}"}
    with start(serving, conf, GTHREAD, **patient) as server, ExitStack() as stack:
        kept = [HTTPConnection("127.0.0.1", server.port, timeout=GIVE_UP_S) for _ in range(2 * AT_ONCE)]
        for _ in range(2):
            for connection in kept:
                stack.callback(connection.close)
                connection.request("GET", "/health")
                with connection.getresponse() as answer:
                    assert (answer.status, answer.read()) == (200, b'{"status":"healthy"}\n')
            assert server.get("/health").status_code == 200


@over_kinds
@pytest.mark.parametrize(
    "sent",
    [b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GARBAGE\r\n\r\n"],
    ids=["answered", "refused"],
)
def test_answered_callers_that_keep_their_side_open(serving, kind, sent):
    """Callers that have their answer and do not close delay nobody, though gunicorn gives each of them two seconds."""
    with start(serving, CONF, kind) as server, ExitStack() as stack:
        # gunicorn itself would take longer for them than the next client waits.
        for _ in range(CALLERS):
            caller = stack.enter_context(connect(server))
            caller.sendall(sent)
        assert server.get("/health").status_code == 200
        assert "Traceback" not in server.output.read_text()


@over_kinds
def test_half_handshakes(serving, conf, kind, tmp_path):
    """Callers that stop in the middle of a TLS handshake are given up, and others are served; the log stays quiet."""
    authority, certificate, bundle = trustme.CA(), tmp_path / "server.pem", tmp_path / "bundle.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    authority.cert_pem.write_to_path(str(bundle))
    tls = f"--certfile {certificate} --keyfile {certificate}"
    with (
        start(serving, conf, kind, bundle=str(bundle), GUNICORN_CMD_ARGS=tls) as server,
        ExitStack() as stack,
    ):
        for _ in range(AT_ONCE):
            caller = stack.enter_context(connect(server))
            caller.sendall(HALF_HELLO)
        for _ in range(2 * AT_ONCE):
            assert server.get("/health").status_code == 200
        assert "Traceback" not in server.output.read_text()


def test_probes_beside_busy_threads(serving):
    """While every thread has a call and more requests wait for one, /health, /ready and /metrics answer."""
    with running() as sandbox, ThreadPoolExecutor(3 * AT_ONCE) as threads:
        sandbox.script([{"fault": "hang", "times": 3 * AT_ONCE}])
        with start(serving, CONF, GTHREAD, DEEPSEEK_BASE_URL=sandbox.url, LLM_MAX_ATTEMPTS="1") as server:
            chats = [
                threads.submit(server.post, "/api/llm/chat", {"prompt": "x"}) for _ in range(3 * AT_ONCE)
            ]
            sandbox.wait_until(lambda stats: stats["in_flight"] == AT_ONCE)
            for path in ("/health", "/health?from=a-balancer", "/ready", "/metrics"):
                assert server.get(path).status_code == 200
            assert not any(chat.done() for chat in chats)
            sandbox.stop()
            assert {chat.result(GIVE_UP_S).status_code for chat in chats} == {502}


def test_few_descriptors(serving):
    """With room for 64 file descriptors 120 clients at once are answered, and the worker lives."""
    with running() as sandbox, ThreadPoolExecutor(120) as threads:
        sandbox.script([{"fault": "ok", "latency_ms": 50, "times": 1000}])
        kind = {"WEB_CONCURRENCY": "1", "WEB_THREADS": "25", "DEEPSEEK_BASE_URL": sandbox.url}
        with start(serving, CONF, kind, "sh", "-c", 'ulimit -n 64 && exec "$@"', "sh") as server:
            pid = server.get("/api/llm/status").json()["pid"]
            meet = threading.Barrier(120, timeout=GIVE_UP_S)

            def chat():
                meet.wait()
                return server.post("/api/llm/chat", {"prompt": "x"})

            answers = [asked.result(GIVE_UP_S) for asked in [threads.submit(chat) for _ in range(120)]]
            statuses = {answer.status_code for answer in answers}
            assert 200 in statuses <= {200, 503}
            assert server.get("/api/llm/status").json()["pid"] == pid
            assert "Traceback" not in server.output.read_text()
