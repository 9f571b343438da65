import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.gunicorns import APPLICATION, poll

from deepseek_client.ops import deployment as module
from deepseek_client.ops.deployment import Deployment
from deepseek_client.ops.env_file import VARIABLE
from deepseek_client.ops.refusal import Refusal
from deepseek_client.telemetry.testimony import process_state

pytestmark = [
    pytest.mark.usefixtures("deployment"),
    pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a server is proved by /proc"),
]


@pytest.fixture
def child():
    """Starts processes that end with the test; each has written a line before it is given out."""
    started = []

    def start(*command, **options):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def found():
    """The pids of the servers, of the other processes, and why not more."""
    deployment = Deployment({})
    return (
        [server.pid for server in deployment.servers],
        [each.pid for each in deployment.others],
        deployment.doubts,
    )


def forge(pid):
    """Makes a testimony that names a process which has never written one."""
    directory = Path(".deepseek")
    directory.mkdir(exist_ok=True)
    place = module_place()
    file = directory / f"{place}-{pid}-{process_state(pid).started}.json"
    file.write_text('{"mode": "async", "engine": "threads", "since": "", "command": []}')


def module_place():
    """How testimonies of this machine begin."""
    from deepseek_client.telemetry import testimony

    return testimony._place()


@pytest.mark.parametrize("options", [[], ["--threads", "2"], ["--pid", "x.pid"], ["-k", "gthread"]])
def test_server(gunicorn, options):
    """A gunicorn with any configuration is found, with its workers, their testimonies and its command line."""
    running = gunicorn(*options, workers=2, HOST="x", EMPTY="")
    (server,) = Deployment({}).servers
    assert server.pid == running.pid
    assert {worker.pid for worker in server.workers()} == running.workers()
    assert {said.mode for said in server.told().values()} == {"async"}
    assert (server.command.environ["HOST"], server.command.environ["EMPTY"]) == ("x", "")
    assert list(server.command.words[1:3]) == ["-m", "gunicorn"]
    assert (server.why_reload_is_ineffective(), server.successor(), server.is_alive()) == ("", 0, True)


def test_directory_of_the_environment(gunicorn, tmp_path, monkeypatch):
    """DEEPSEEK_RUN_DIR of the environment or of .env says where the testimonies are."""
    elsewhere = tmp_path / "run"
    running = gunicorn(DEEPSEEK_RUN_DIR=str(elsewhere), directory=elsewhere)
    assert Deployment({}).servers == []
    assert [server.pid for server in Deployment({"DEEPSEEK_RUN_DIR": str(elsewhere)}).servers] == [
        running.pid
    ]
    monkeypatch.setenv("DEEPSEEK_RUN_DIR", str(elsewhere))
    assert [server.pid for server in Deployment({}).servers] == [running.pid]


def test_several_servers(gunicorn, tmp_path):
    """All servers of this directory are found, and none of another directory that testifies in the same place."""
    servers = {gunicorn().pid, gunicorn().pid}
    other = tmp_path / "other"
    other.mkdir()
    gunicorn(root=other)
    shutil.copytree(other / ".deepseek", ".deepseek", dirs_exist_ok=True)
    pids, others, doubts = found()
    assert (set(pids), others, len(doubts)) == (servers, [], 1)
    assert doubts[0].endswith("works in another directory")


@pytest.mark.parametrize(
    ("options", "env"),
    [(["--preload"], {}), ([], {"GUNICORN_CMD_ARGS": "--workers 2 --preload"})],
    ids=["option", "variable"],
)
def test_preload(gunicorn, options, env):
    """With --preload the master testifies too and is no worker."""
    running = gunicorn(*options, workers=2, **env)
    (server,) = Deployment({}).servers
    assert {worker.pid for worker in server.told()} == running.workers()
    assert found() == ([running.pid], [], found()[2])
    assert server.is_preloaded()


def test_helper_of_a_worker(gunicorn):
    """What a worker forks, a pool of processes for one, is neither a worker nor a server of its own."""
    fork = "import time\nif not os.fork():\n    time.sleep(1000)\n"
    Path("app.py").write_text(APPLICATION.replace("\ndef app", f"\n{fork}\ndef app"))
    running = gunicorn()
    (worker,) = running.workers()
    (helper,) = poll(lambda: [said.pid for said in running.testimonies() if said.master == worker])
    try:
        pids, others, _ = found()
        assert (pids, others) == ([running.pid], [])
        assert [each.pid for each in Deployment({}).servers[0].workers()] == [worker]
    finally:
        os.kill(helper, signal.SIGKILL)


def test_successor(gunicorn):
    """While a master that USR2 started takes over, both are known, and which of them is the new one."""
    running = gunicorn()
    os.kill(running.pid, signal.SIGUSR2)
    poll(lambda: len(found()[0]) == 2)
    old, new = sorted(Deployment({}).servers, key=lambda server: server.pid != running.pid)
    try:
        assert (old.successor(), new.successor()) == (new.pid, 0)
        assert {worker.pid for worker in old.workers()} == running.workers()
    finally:
        poll(new.workers)
        for pid in (new.pid, *(worker.pid for worker in new.workers())):
            os.kill(pid, signal.SIGKILL)


def test_stale_testimony(gunicorn, child):
    """A testimony of a process whose number somebody else has now leads to nothing."""
    running = gunicorn()
    (file,) = Path(".deepseek").glob("*.json")
    running.end()
    place = file.stem.rsplit("-", 2)[0]
    stranger = child("cat")
    file.with_name(f"{place}-{stranger.pid}-1.json").write_text(
        '{"mode": "async", "engine": "", "since": "", "command": []}'
    )
    assert found() == ([], [], [])


def test_forged_testimony(gunicorn, child, tmp_path):
    """A testimony for a process that is no gunicorn's child, or the child of one elsewhere, leads to no server."""
    stranger = child("cat", cwd="/")
    forge(stranger.pid)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = gunicorn(root=elsewhere)
    for worker in other.workers():
        forge(worker)
    pids, others, doubts = found()
    assert (pids, others) == ([], [])
    assert any("is not a gunicorn" in doubt or "another directory" in doubt for doubt in doubts)
    assert any("works in another directory" in doubt for doubt in doubts)


def test_other_server(child):
    """An application under a server that is no gunicorn is known as such."""
    Path("app.py").write_text(APPLICATION)
    code = "import app, sys; print(1, flush=True); sys.stdin.readline()"
    path = {"PYTHONPATH": f"{Path(module.__file__).parents[2]}:."}
    other = child(sys.executable, "-c", code, env={**os.environ, **path})
    assert other.stdout.readline() == b"1\n"
    pids, others, _ = found()
    assert (pids, others) == ([], [other.pid])


def test_name_is_not_enough(child):
    """A process that only has gunicorn among its arguments is no gunicorn, whatever testifies as its child."""
    code = "import subprocess; p = subprocess.Popen(['cat']); print(p.pid, flush=True); p.wait()"
    parent = child(sys.executable, "-c", code, "gunicorn", "app:app")
    forge(int(parent.stdout.readline()))
    assert found()[0] == []


def test_script_of_that_name(child):
    """Somebody's own script that is named gunicorn is no server, whatever testifies as its child."""
    code = "import subprocess; p = subprocess.Popen(['cat']); print(p.pid, flush=True); p.wait()"
    Path("gunicorn").write_text(code)
    parent = child(sys.executable, "./gunicorn", "-b", "127.0.0.1:1", "app:app")
    forge(int(parent.stdout.readline()))
    pids, _, doubts = found()
    assert (pids, Deployment({}).silent) == ([], [])
    assert doubts == [
        f"process {parent.pid} ({module.name_of(parent.pid)}) runs a script that may not be gunicorn's own"
    ]


def test_silent_server(gunicorn):
    """A gunicorn of this directory without a testimony is known as such, and none of another directory is."""
    running = gunicorn(workers=2)
    assert Deployment({}).silent == []
    shutil.rmtree(".deepseek")
    silent = Deployment({})
    assert (silent.servers, silent.silent) == ([], [running.pid])
    os.chdir("..")
    assert Deployment({}).silent == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes somebody else")
def test_foreign_user(gunicorn):
    """Somebody else's server is not signalled: whoever asks is told to be its user."""
    gunicorn()
    os.chmod(".deepseek", 0o755)
    for file in Path(".deepseek").iterdir():
        file.chmod(0o644)
    for directory in Path(".").absolute().parents:
        if str(directory).startswith("/tmp/pytest"):
            directory.chmod(0o755)
    code = "from deepseek_client.ops.deployment import Deployment; import os; os.setuid(65534)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(Deployment({{}}).doubts)"],
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert "belongs to someone else: run this as its user, or as root" in done.stdout, done.stderr


def test_directory_that_may_not_be_read(monkeypatch):
    """Testimonies that this user may not read are refused in one sentence."""

    def deny(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "read_testimonies", deny)
    with pytest.raises(
        Refusal, match=r"cannot read \.deepseek: Permission denied: run this as the server's user"
    ):
        Deployment({})


def test_without_proc(monkeypatch):
    """A system without /proc is refused in one sentence."""
    monkeypatch.setattr(module, "process_state", lambda pid: None)
    with pytest.raises(Refusal, match="need Linux's /proc"):
        Deployment({})


@pytest.mark.parametrize(
    ("options", "env", "why"),
    [
        ([], {VARIABLE: "0"}, "USE_ASYNC_DEEPSEEK='0' is in the environment"),
        ([], {VARIABLE: ""}, "USE_ASYNC_DEEPSEEK='' is in the environment"),
        (["-e", f"{VARIABLE}=1"], {}, "'USE_ASYNC_DEEPSEEK=1' is in the command line"),
        ([f"-e{VARIABLE}=1"], {}, "'-eUSE_ASYNC_DEEPSEEK=1' is in the command line"),
        ([f"--env={VARIABLE}=1"], {}, "'--env=USE_ASYNC_DEEPSEEK=1' is in the command line"),
        ([], {"GUNICORN_CMD_ARGS": f"--env {VARIABLE}=1"}, "is in the command line"),
    ],
)
def test_ineffective_reload(gunicorn, options, env, why):
    """What comes before .env is seen in the server's environment and command line."""
    gunicorn(*options, **env)
    (server,) = Deployment({}).servers
    assert why in server.why_reload_is_ineffective()


def test_reload(gunicorn):
    """A reload replaces the workers; a server that has ended, whose number may be another's now, gets no signal."""
    running = gunicorn()
    (server,) = Deployment({}).servers
    old = server.workers()
    server.reload()
    poll(lambda: server.workers() and not server.workers() & old)
    running.end()
    assert not server.is_alive()
    with pytest.raises(Refusal, match=f"cannot reload process {running.pid}: No such process"):
        server.reload()


def test_hidden_command_line(gunicorn, monkeypatch):
    """Where setproctitle has hidden a server's command line, its workers tell it, and the variables are ours."""
    package = Path("setproctitle.py")
    package.write_text("""
import ctypes
getproctitle = lambda: ""
def setproctitle(title):
    # What the package does: writes over the arguments, in place.
    words = open("/proc/self/cmdline", "rb").read()
    start = int(open("/proc/self/stat").read().rpartition(")")[2].split()[45])
    text = title.encode().ljust(len(words), b"\\0")[: len(words)]
    ctypes.memmove(start, text, len(words))
""")
    padding = ["-n", "x" * 60]
    running = gunicorn(*padding, PYTHONPATH=f"{Path(module.__file__).parents[2]}:{package.parent.absolute()}")
    poll(lambda: Path(f"/proc/{running.pid}/cmdline").read_bytes().startswith(b"gunicorn: master"))
    monkeypatch.setenv("HOST", "127.0.0.2")
    monkeypatch.setenv(VARIABLE, "1")
    (server,) = Deployment({}).servers
    assert {worker.pid for worker in server.workers()} == running.workers()
    assert (server.command.environ["HOST"], server.why_reload_is_ineffective()) == ("127.0.0.2", "")
    assert list(server.command.words[1:3]) == ["-m", "gunicorn"]
