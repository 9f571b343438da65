"""The console's process, which bin/serve starts beside gunicorn."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import requests
from support.patience import GIVE_UP_S
from support.ports import free_port

ROOT = Path(__file__).parents[2]
SERVE = str(ROOT / "bin" / "serve")

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")


@pytest.fixture(scope="module", autouse=True)
def set_up():
    """The first set-up, which may take a minute, is not what these tests are about."""
    subprocess.run([ROOT / "bin" / "setup"], check=True)


def consoles_of(server):
    """The pids of its consoles."""
    return [pid for pid, line in server.processes().items() if "deepseek_client console" in line]


def asked(port, path):
    """The answer of the console at this port; None as long as there is none."""
    try:
        with requests.Session() as http:
            http.trust_env = False
            return http.get(f"http://127.0.0.1:{port}{path}", timeout=GIVE_UP_S)
    except requests.RequestException:
        return None


@pytest.fixture
def unused_port():
    """A port on which nobody listens now."""
    return free_port()


@pytest.fixture
def console(serving, unused_port, eventually):
    """bin/serve with a console: the server, and a function that asks the console."""
    with serving([SERVE], CONSOLE_PORT=str(unused_port)) as server:
        eventually(lambda: asked(unused_port, "/data"))
        yield server, lambda path: asked(unused_port, path)


def test_console_sees_the_workers_of_its_server(console, eventually):
    """It names this server's workers and no others that serve the same directory, and counts their calls."""
    server, ask = console
    assert server.post("/api/llm/chat", {"prompt": "x"}).status_code == 200
    workers = [pid for pid, line in server.processes().items() if "gunicorn" in line and pid != server.pid]
    eventually(lambda: len(ask("/data").json()["now"]["processes"]) == 3)
    shown = [row[0] for row in ask("/data").json()["now"]["processes"][:-1]]
    assert shown == [str(pid) for pid in sorted(workers)]
    assert 'deepseek_requests_total{method="chat",mode="async"} 1.0' in ask("/metrics").text
    assert "Console on http://127.0.0.1:" in server.output.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_console_ends_with_its_server(console, eventually, number):
    """Whatever ends the server ends the console, also kill -9."""
    server, _ = console
    assert len(consoles_of(server)) == 1
    server.end(number)
    eventually(lambda: not server.processes())


def test_console_survives_a_reload(console, eventually):
    """SIGHUP replaces the workers; the console stays and shows the new ones."""
    server, ask = console
    [before] = consoles_of(server)
    eventually(lambda: len(ask("/data").json()["now"]["processes"]) == 3)
    old = {row[0] for row in ask("/data").json()["now"]["processes"][:-1]}
    server.process.send_signal(signal.SIGHUP)

    def are_new():
        shown = {row[0] for row in ask("/data").json()["now"]["processes"][:-1]}
        return len(shown) == 2 and not shown & old

    eventually(are_new)
    assert consoles_of(server) == [before]


def test_console_takes_little(console):
    """The console is under 60 MB, and a look at its data under 5 ms of CPU."""
    server, ask = console
    [pid] = consoles_of(server)
    ask("/")

    def cpu_s():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = cpu_s()
    for number in range(200):
        assert ask(f"/data?since={number}").status_code == 200
    assert (cpu_s() - before) / 200 < 0.005
    resident_kb = int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])
    assert resident_kb < 60_000


def test_console_port_in_use(serving):
    """A port that is in use costs the console, with one line that says so, and not the service."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with serving([SERVE], CONSOLE_PORT=port) as server:
            assert server.get("/health").status_code == 200
            assert consoles_of(server) == []
            line = f"serve: no console: cannot listen on 127.0.0.1:{port}: Address already in use"
            assert line in server.output.read_text()
