"""Under gevent's patch a call's greenlet is ended, whatever its client waits for, and nobody else's is."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from flask import Flask
from support.patience import GIVE_UP_S

from deepseek_client import ConfigError
from deepseek_client.flask import DeepSeek

ROOT = Path(__file__).parents[2]
CHATS = ["reads", "sleeps", "gets", "acquires", "catches"]

PROLOGUE = """
from gevent import monkey
monkey.patch_all()

import asyncio, http.client, queue, socket, sys, threading, time
from types import SimpleNamespace
import gevent
from deepseek_client import AsyncDeepSeekClient, DeadlineExceeded, Settings, WorkerPool

silent = socket.create_server(("127.0.0.1", 0))

def read_from(server):
    http_client = http.client.HTTPConnection(*server.getsockname(), timeout=600)
    http_client.request("GET", "/")
    return http_client.getresponse().read()

def reads(prompt):
    return read_from(silent)

def sleeps(prompt):
    time.sleep(600)

def gets(prompt):
    queue.Queue().get(timeout=600)

def acquires(prompt):
    threading.Semaphore(0).acquire(timeout=600)

def catches(prompt):
    while True:  # as an SDK that tries again, whatever broke
        try:
            read_from(silent)
        except Exception:
            pass

pool = WorkerPool(workers=1, queue_limit=9)

def client(chat, deadline_s):
    settings = Settings(deadline_s=deadline_s)
    return AsyncDeepSeekClient(
        client=SimpleNamespace(chat=chat, parse=None), pool=pool, settings=settings, errors="raise"
    )

echo = client(lambda prompt: prompt, 600)
"""

DEADLINE = """
try:
    asyncio.run(client(CHAT, 0.2).chat_async("a"))
    raise SystemExit("it came back")
except DeadlineExceeded:
    pass
assert asyncio.run(echo.chat_async("b")) == "b"  # by the same, single worker
"""

IN_ITS_OWN_GREENLET = """
try:
    client(CHAT, 0.2).chat("a")
    raise SystemExit("it came back")
except DeadlineExceeded:
    pass
assert echo.chat("b") == "b"
"""

CANCELLED = """
async def leave():
    task = asyncio.ensure_future(client(CHAT, 600).chat_async("a"))
    while not pool.stats()["busy"]:
        await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return await echo.chat_async("b")
assert asyncio.run(leave()) == "b"
"""

NEIGHBOUR = """
elsewhere = socket.create_server(("127.0.0.1", 0))
got = gevent.spawn(read_from, elsewhere)  # which no call of ours began
other, _ = elsewhere.accept()
try:
    client(CHAT, 0.2).chat("a")
except DeadlineExceeded:
    pass
assert not got.ready()
other.recv(1000)
other.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
assert got.get(timeout=60) == b"ok"
"""


def run(program):
    """Runs the program under gevent's patch to its end."""
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(DEADLINE, id="deadline"),
        pytest.param(IN_ITS_OWN_GREENLET, id="in_its_own_greenlet"),
        pytest.param(CANCELLED, id="cancelled"),
        pytest.param(NEIGHBOUR, id="neighbour"),
    ],
)
def test_a_greenlet_is_back(end):
    """What ends a call reaches its client in any wait, its worker takes the next call, and a neighbour goes on."""
    run("".join(end.replace("CHAT", chat) for chat in CHATS))


NO_SOCKET = """
from deepseek_client.wire import tcp

ours = socket.socket()
ours.close()
for sock in [ours, None]:
    assert not tcp.has_other_end_closed(sock)
    assert tcp.seconds_since_received(sock) is None
"""


def test_what_is_no_open_socket_says_nothing():
    """A socket that is closed, and None where a server shows no socket, are nothing that the kernel knows of."""
    run(NO_SOCKET)


EVENTLET = """
import sys
from types import ModuleType

sys.modules["eventlet.patcher"] = patcher = ModuleType("eventlet.patcher")
patcher.is_monkey_patched = lambda name: name == "socket"
from deepseek_client import asyncify
"""


def test_eventlet_is_refused_by_the_import():
    """Under eventlet's patch, whose sockets cannot be watched, the first name that is imported says why."""
    done = subprocess.run(
        [sys.executable, "-c", EVENTLET], cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP_S
    )
    assert done.stderr.splitlines()[-1].startswith(
        "deepseek_client.errors.ConfigError: eventlet has patched this process"
    )


@pytest.mark.parametrize("patched", ["socket", "thread and time", "time", "nothing"])
def test_eventlet_that_patches_after_the_import(monkeypatch, patched):
    """Its patch of sockets or threads is refused when an application begins, too; eventlet alone is none."""
    patcher = ModuleType("eventlet.patcher")
    patcher.is_monkey_patched = patched.split().__contains__
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)
    llm = DeepSeek(client=ModuleType("theirs"))
    if "socket" in patched or "thread" in patched:
        with pytest.raises(ConfigError, match="eventlet has patched this process"):
            llm.init_app(Flask("theirs"))
    else:
        llm.init_app(Flask("theirs"))
