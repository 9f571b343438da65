"""Whose metrics a process shares, and where."""

import multiprocessing
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from support.blocking import in_child
from support.patience import GIVE_UP_S

from deepseek_client.telemetry import metric_directory
from deepseek_client.telemetry.metric_files import OwnFiles

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path):
    """TMPDIR of the test, and no other place."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(metric_directory, "_LAST_PLACES", ())
    return tmp_path


@pytest.fixture
def processes(monkeypatch, tmp_path):
    """A /proc of the test's own: `processes[pid] = parent, command line`."""
    proc = tmp_path / "proc"

    class Processes:
        def __setitem__(self, pid, shown):
            parent, title = shown
            (proc / str(pid)).mkdir(parents=True)
            (proc / str(pid) / "cmdline").write_bytes(title)
            fields = ["S", str(parent), *["0"] * 17, str(1000 + pid)]
            (proc / str(pid) / "stat").write_text(f"{pid} (a ) b) {' '.join(fields)}\n")

    monkeypatch.setattr(metric_directory, "_proc", proc)
    return Processes()


GUNICORN = b"/venv/bin/python\0/venv/bin/gunicorn\0app:app\0"


@pytest.mark.parametrize(
    ("own", "parents", "shares"),
    [
        (GUNICORN, GUNICORN, True),
        (b"gunicorn: worker [shop]\0\0\0", b"gunicorn: master [shop]\0", True),
        (b"gunicorn: worker [shop]", b"gunicorn: master [game]", False),
        (b"uWSGI worker 12\0", b"uWSGI master\0", True),
        (GUNICORN, b"/bin/sh\0-c\0exec gunicorn app:app\0", False),
        (b"python\0app.py\0", b"/sbin/init\0", False),
    ],
    ids=["fork", "titles", "titles of two servers", "uWSGI", "shell", "alone"],
)
def test_a_worker_is_known_by_its_command_line(processes, own, parents, shares):
    """A process that shows what its parent shows, or the same title as another kind of process, belongs to it."""
    processes[os.getpid()] = 41, own
    processes[41] = 1, parents
    assert metric_directory.first_process() == (41 if shares else os.getpid())


def test_only_one_step_up(processes):
    """A master that another master has started (USR2) is the first process of its workers."""
    processes[os.getpid()] = 41, GUNICORN
    processes[41] = 40, GUNICORN
    processes[40] = 1, GUNICORN
    assert metric_directory.first_process() == 41


@pytest.mark.parametrize("server", ["gunicorn/26.0.0", "other/1", None])
@pytest.mark.parametrize("loaded", [True, False], ids=["gunicorn", "no gunicorn"])
def test_where_no_command_line_can_be_seen(processes, monkeypatch, server, loaded):
    """Where /proc is missing or hides other users' processes, gunicorn's workers are known by what it sets."""
    monkeypatch.delitem(sys.modules, "gunicorn", raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "gunicorn", object())
    monkeypatch.setenv("SERVER_SOFTWARE", server or "")
    is_worker = loaded and server == "gunicorn/26.0.0"
    assert metric_directory.first_process() == (os.getppid() if is_worker else os.getpid())


def test_the_first_process_of_a_container(processes, monkeypatch):
    """A process without a parent is its server's first, under gunicorn too."""
    monkeypatch.setitem(sys.modules, "gunicorn", object())
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/26.0.0")
    processes[os.getpid()] = 0, GUNICORN
    assert metric_directory.first_process() == os.getpid()


def test_multiprocessing_names_the_parent(processes, monkeypatch):
    """A worker that multiprocessing has started belongs to its parent, or to the server that that is a worker of."""
    spawner = SimpleNamespace(pid=41)
    monkeypatch.setattr(multiprocessing.process, "parent_process", lambda: spawner)
    processes[os.getpid()] = 41, b"python\0-c\0from multiprocessing.spawn import spawn_main\0"
    processes[41] = 40, b"hypercorn\0app:app\0"
    processes[40] = 1, b"/bin/sh\0"
    assert metric_directory.first_process() == 41
    spawner.pid = 51
    processes[51] = 50, GUNICORN
    processes[50] = 1, GUNICORN
    assert metric_directory.first_process() == 50


def test_a_fork_of_this_process():
    """In the real /proc a forked child belongs to this process, and a new program does not."""
    ours = os.getpid()
    in_child(lambda: check(metric_directory.first_process() == ours))
    assert metric_directory.first_process() == ours
    other = subprocess.run(
        [
            sys.executable,
            "-c",
            "from deepseek_client.telemetry import metric_directory as d; print(d.first_process())",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert int(other.stdout) != ours


def check(fact):
    assert fact


def test_the_directory_is_private(temporary):
    """It is named by the server's first process and that one's start, and nobody else can look into it."""
    path = metric_directory.directory()
    assert path.parent == temporary
    start = metric_directory._start_of(os.getpid())
    assert path.name == f"deepseek-metrics-{os.getpid()}-{start}"
    assert start > 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert metric_directory.directory() == path
    in_child(lambda: check(metric_directory.directory() == path))


def test_a_given_directory_keeps_its_own_files(monkeypatch, tmp_path):
    """In PROMETHEUS_MULTIPROC_DIR ours lie in a folder, where a collector of that directory does not look."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "theirs"))
    assert metric_directory.directory() == tmp_path / "theirs" / "deepseek"
    assert os.listdir(tmp_path / "theirs") == ["deepseek"]


@pytest.mark.parametrize("kind", ["foreign", "open", "link", "file"])
def test_what_somebody_else_has_put_there_is_not_used(monkeypatch, temporary, kind):
    """A directory of another user, one that others may enter, a link and a file are refused."""
    path = temporary / metric_directory.directory().name
    path.rmdir()
    if kind == "foreign":
        path.mkdir(mode=0o700)
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    elif kind == "open":
        path.mkdir()
        path.chmod(0o770)
    elif kind == "link":
        (temporary / "trap").mkdir(mode=0o700)
        path.symlink_to(temporary / "trap")
    else:
        path.touch()
    with pytest.raises(PermissionError):
        metric_directory.directory()


def test_places_are_tried_in_their_order(monkeypatch, tmp_path):
    """Where the first place cannot hold it the next one does, and keeps it when the first one can again."""
    (tmp_path / "second").mkdir()
    monkeypatch.setattr(metric_directory, "_LAST_PLACES", (str(tmp_path / "second"),))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "first"))
    path = metric_directory.directory()
    assert path.parent == tmp_path / "second"
    (tmp_path / "first").mkdir()
    assert metric_directory.directory() == path


def test_no_place_at_all(monkeypatch, tmp_path):
    """Where nothing can be written it is an OSError."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match="nowhere"):
        metric_directory.directory()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no /dev/shm")
def test_shared_memory_will_do(monkeypatch):
    """/dev/shm, often all that a container lets a program write to, is a place."""
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    path = metric_directory.directory()
    assert path.parent == Path("/dev/shm")
    own = OwnFiles(path)
    own.file("counter").set("x", own.file("counter").get("x") + 1)
    own.close()
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def test_directories_of_ended_servers_are_removed(temporary):
    """Whoever makes a directory removes those whose process is gone or another one, and no other's."""
    ours, start = os.getpid(), metric_directory._start_of(os.getpid())
    ended = subprocess.Popen(["true"])
    ended.wait()

    def made(name, mode=0o700):
        path = temporary / f"deepseek-metrics-{name}"
        path.mkdir(mode=mode)
        (path / "0.lock").touch()
        (path / "counter_0.db").touch()
        return path

    gone = [made(f"{ended.pid}-12345"), made(f"{ours}-{start + 1}")]
    kept = [
        made(f"{os.getppid()}-{metric_directory._start_of(os.getppid())}"),
        made(f"{ended.pid}-a"),
        made("x"),
    ]
    open_to_others = made(f"{ended.pid}-1", 0o755)
    with_more = made(f"{ended.pid}-2")
    (with_more / "notes.txt").touch()
    in_use = made(f"{ended.pid}-3")

    held, let_go = os.pipe(), os.pipe()
    worker = os.fork()
    if worker == 0:  # a worker outlives its master
        OwnFiles(in_use)
        os.write(held[1], b".")
        os.read(let_go[0], 1)
        os._exit(0)
    os.read(held[0], 1)
    path = metric_directory.directory()
    os.write(let_go[1], b".")
    os.waitpid(worker, 0)

    assert set(temporary.iterdir()) == {path, *kept, open_to_others, with_more, in_use}
    assert os.listdir(with_more) == ["notes.txt"]
    assert os.listdir(in_use) == ["0.lock"]
    assert not any(directory.exists() for directory in gone)


APP = """
import os
from deepseek_client.telemetry import metrics
from deepseek_client.events import CallFinished, emit

metrics.install()

def app(environ, start_response):
    body = str(os.getpid()).encode()
    if environ["PATH_INFO"] == "/metrics":
        body = metrics.exposition()[0]
    else:
        emit(CallFinished("chat", "async", 0.1, 0.2, None, {}, 1))
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize(
    "options", [(), ("--preload",), ("--threads", "2")], ids=["sync", "preload", "gthread"]
)
def test_workers_of_plain_gunicorn_are_summed(tmp_path, temporary, options):
    """With no configuration at all /metrics counts the calls of both workers, whichever is asked."""
    (tmp_path / "app.py").write_text(APP)
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-w", "2", "-b", "127.0.0.1:0", *options, "app:app"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = next(found[0] for line in server.stderr if (found := re.search(r"http://[\d.:]+", line)))
        pids = []
        while len(set(pids)) < 2:
            pids.append(requests.get(url, timeout=GIVE_UP_S).text)
        for _ in range(4):
            text = requests.get(f"{url}/metrics", timeout=GIVE_UP_S).text
            assert total(text, "deepseek_requests_total") == len(pids)
        assert [path.name.split("-")[2] for path in temporary.glob("deepseek-metrics-*")] == [str(server.pid)]
    finally:
        server.terminate()
        server.communicate(timeout=GIVE_UP_S)


def total(text, name):
    """The sum of a metric over all labels."""
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


SPAWNING = """
import multiprocessing, sys
from deepseek_client.telemetry import metrics
from deepseek_client.events import CallFinished, emit

def work():
    metrics.install()
    emit(CallFinished("chat", "async", 0.1, 0.2, None, {}, 1))

if __name__ == "__main__":
    for kind in ("spawn", "fork"):
        workers = [multiprocessing.get_context(kind).Process(target=work) for _ in range(2)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
    sys.stdout.write(metrics.exposition()[0].decode())
"""


def test_processes_of_multiprocessing_are_summed(tmp_path):
    """What spawned and forked processes count, as hypercorn, granian and uvicorn start them, their parent shows."""
    (tmp_path / "server.py").write_text(SPAWNING)
    done = subprocess.run(
        [sys.executable, "server.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert total(done.stdout, "deepseek_requests_total") == 4
