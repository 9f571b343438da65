import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.patience import GIVE_UP_S

from deepseek_client.telemetry import testimony
from deepseek_client.telemetry.testimony import process_state, read_testimonies, run_directory

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a process proves itself by /proc")


@pytest.fixture(autouse=True)
def deployment(tmp_path, monkeypatch):
    """An empty working directory, and a process that has said nothing yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPSEEK_RUN_DIR", raising=False)
    monkeypatch.setattr(testimony, "_said", None)
    monkeypatch.setattr(testimony, "_looked_at", float("-inf"))
    return tmp_path


@pytest.fixture
def process(deployment):
    """Starts a program after `from ... import testify`; it is fed by stdin and ended with the test."""
    started = []

    def start(code, **env):
        program = f"""
import os, sys
from pathlib import Path
from deepseek_client.telemetry.testimony import read_testimonies, testify
{code}"""
        child = subprocess.Popen(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": str(ROOT), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


TESTIFY = "testify(is_async=True, engine='threads')\nprint(1, flush=True)\nsys.stdin.readline()\n"


def ended_process():
    """The pid and the start of a process that has ended and has been waited for."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        state = process_state(child.pid)
    return child.pid, state.started


def test_testimony():
    """A process says who it is, whose child, how it calls, with which engine, and since when."""
    testimony.testify(is_async=True, engine="threads")
    (said,) = read_testimonies(Path(".deepseek"))
    assert (said.pid, said.master, said.owner) == (os.getpid(), os.getppid(), os.getuid())
    assert (said.mode, said.engine, said.command) == ("async", "threads", ())
    assert said.since.endswith("+00:00")


def test_only_the_owner_reads():
    """The folder and the file are closed to everybody else."""
    testimony.testify(is_async=True, engine="threads")
    (file,) = Path(".deepseek").iterdir()
    assert [path.stat().st_mode & 0o777 for path in (file.parent, file)] == [0o700, 0o600]


def test_directory_of_the_environment(monkeypatch, tmp_path):
    """DEEPSEEK_RUN_DIR moves the testimonies, and an argument comes before it."""
    monkeypatch.setenv("DEEPSEEK_RUN_DIR", str(tmp_path / "run" / "app"))
    testimony.testify(is_async=False, engine="inline")
    assert [said.mode for said in read_testimonies(run_directory(os.environ))] == ["sync"]
    testimony.testify(is_async=False, engine="inline", directory="other")
    assert len(read_testimonies(Path("other"))) == 1
    assert not Path(".deepseek").exists()


def test_settings_of_the_application():
    """What the application sets itself is told, and a testimony that says nothing of it is one all the same."""
    testimony.testify(is_async=True, engine="threads", config={"LLM_MAX_WORKERS": "7"})
    assert [said.config for said in read_testimonies(Path(".deepseek"))] == [{"LLM_MAX_WORKERS": "7"}]
    (file,) = Path(".deepseek").iterdir()
    content = json.loads(file.read_text())
    del content["config"]
    file.write_text(json.dumps(content))
    assert [said.config for said in read_testimonies(Path(".deepseek"))] == [{}]


def test_applications_that_differ():
    """A process with an application of each kind is neither: no rollback is proved by it."""
    testimony.testify(is_async=True, engine="threads")
    testimony.testify(is_async=True, engine="threads")
    assert [said.mode for said in read_testimonies(Path(".deepseek"))] == ["async"]
    testimony.testify(is_async=False, engine="threads")
    assert [said.mode for said in read_testimonies(Path(".deepseek"))] == ["mixed"]


def test_clean_exit(process):
    """A process that ends by itself takes its testimony with it."""
    child = process(TESTIFY)
    assert child.stdout.readline() == "1\n"
    assert [said.pid for said in read_testimonies(Path(".deepseek"))] == [child.pid]
    child.communicate("\n", timeout=GIVE_UP_S)
    assert os.listdir(".deepseek") == []


def test_killed_process(process):
    """What a killed process has left is not believed, and is removed by the next that writes."""
    child = process(TESTIFY)
    assert child.stdout.readline() == "1\n"
    child.kill()
    child.wait(GIVE_UP_S)
    assert len(os.listdir(".deepseek")) == 1
    assert read_testimonies(Path(".deepseek")) == []
    testimony.testify(is_async=True, engine="threads")
    assert len(os.listdir(".deepseek")) == 1
    assert [said.pid for said in read_testimonies(Path(".deepseek"))] == [os.getpid()]


def test_number_that_somebody_else_has_now():
    """A testimony whose number has gone to another process is not believed, and is removed by the next that writes."""
    testimony.testify(is_async=True, engine="threads")
    (file,) = Path(".deepseek").iterdir()
    place, pid, started = file.stem.rsplit("-", 2)
    stale = file.rename(file.with_name(f"{place}-{pid}-{int(started) - 1}.json"))
    assert read_testimonies(Path(".deepseek")) == []
    testimony.testify(is_async=True, engine="threads")
    assert not stale.exists()


def test_other_container():
    """What processes of another machine or container have said is neither believed here nor removed."""
    Path(".deepseek").mkdir()
    pid, started = ended_process()
    foreign = Path(".deepseek", f"0123abcd-1-{pid}-{started}.json")
    foreign.write_text("{}")
    testimony.testify(is_async=True, engine="threads")
    assert foreign.exists()
    assert [said.pid for said in read_testimonies(Path(".deepseek"))] == [os.getpid()]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"mode": 1}', "\0"])
def test_file_of_a_stranger(content):
    """A file that is no testimony is passed over."""
    testimony.testify(is_async=True, engine="threads")
    (file,) = Path(".deepseek").iterdir()
    file.write_text(content)
    assert read_testimonies(Path(".deepseek")) == []


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("/proc/1/nowhere")])
def test_folder_that_cannot_be_written(make, caplog):
    """Without a folder the service goes on, and one line says what that costs."""
    caplog.set_level(logging.INFO)
    make(Path(".deepseek"))
    testimony.testify(is_async=True, engine="threads")
    (record,) = caplog.records
    assert (record.levelname, "cannot prove" in record.message) == ("INFO", True)


def test_full_disk(monkeypatch, caplog):
    """A disk that is full leaves no half a testimony."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", fail)
    caplog.set_level(logging.INFO)
    testimony.testify(is_async=True, engine="threads")
    assert (os.listdir(".deepseek"), len(caplog.records)) == ([], 1)


def own_file():
    """The file of this process's testimony."""
    (file,) = Path(".deepseek").glob("*.json")
    return file


def take_away():
    """rm -rf .deepseek, git clean -fdx."""
    shutil.rmtree(".deepseek")


def put_pipe_there():
    """A named pipe in the place of the testimony."""
    file = own_file()
    file.unlink()
    os.mkfifo(file)


def put_link_there():
    """A link in the place of the testimony, to a file as good as it."""
    file = own_file()
    file.symlink_to(file.rename("real"))


@pytest.mark.parametrize(
    "lose", [take_away, put_pipe_there, put_link_there, lambda: os.truncate(own_file(), 0)]
)
def test_lost_testimony(lose):
    """A process whose testimony is lost testifies again, and in the same words."""
    testimony.testify(is_async=False, engine="threads")
    lose()
    assert read_testimonies(Path(".deepseek")) == []
    testimony.restore()
    assert [(said.pid, said.mode) for said in read_testimonies(Path(".deepseek"))] == [(os.getpid(), "sync")]


def test_room_after_a_full_disk(monkeypatch, caplog):
    """A testimony that could not be written is written once there is room, and says its failure once."""
    with monkeypatch.context() as full:
        full.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        caplog.set_level(logging.INFO)
        testimony.testify(is_async=True, engine="threads")
        testimony.restore(lambda: 0.0)
        assert (os.listdir(".deepseek"), len(caplog.records)) == ([], 1)
    testimony.restore(lambda: 10.0)
    assert [said.pid for said in read_testimonies(Path(".deepseek"))] == [os.getpid()]


def test_looks_are_rare():
    """However many requests there are, the file is looked for once in five seconds."""
    testimony.testify(is_async=True, engine="threads")
    testimony.restore(lambda: 100.0)
    take_away()
    testimony.restore(lambda: 104.9)
    assert not Path(".deepseek").exists()
    testimony.restore(lambda: 105.0)
    assert own_file()


def test_nothing_to_restore():
    """A process that has said nothing says nothing, and an intact testimony is left as it is."""
    testimony.restore(lambda: 0.0)
    assert os.listdir() == []
    testimony.testify(is_async=True, engine="threads")
    before = own_file().stat()
    testimony.restore(lambda: 10.0)
    assert own_file().stat() == before


def test_removed_deployment(monkeypatch):
    """A working directory that has been removed does not come back by a testimony."""
    root = Path("release").absolute()
    root.mkdir()
    monkeypatch.chdir(root)
    testimony.testify(is_async=True, engine="threads")
    shutil.rmtree(root)
    testimony.restore()
    assert not root.exists()


def test_restored_by_a_fork(process):
    """What --preload has forked testifies again for itself."""
    code = """
import shutil
from deepseek_client.telemetry.testimony import restore
testify(is_async=True, engine="threads")
pid = os.fork()
if not pid:
    shutil.rmtree(".deepseek")
    restore()
    print([each.pid for each in read_testimonies(Path(".deepseek"))] == [os.getpid()], flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
    assert process(code).communicate(timeout=GIVE_UP_S)[0] == "True\n"


@pytest.mark.parametrize("tail", [" " * 20_000, "[" * 16_000], ids=["large", "deep"])
def test_file_without_measure(tail):
    """A file that is too large, or too deep, is passed over."""
    testimony.testify(is_async=True, engine="threads")
    text = own_file().read_text()
    own_file().write_text(text + tail if tail.isspace() else tail)
    assert read_testimonies(Path(".deepseek")) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_owner_of_a_testimony(process):
    """A stranger's file is passed over; that of the process's own user, who has given root's rights up, is not."""
    with tempfile.TemporaryDirectory() as name:  # everybody can reach it, which is not so with tmp_path
        os.chmod(name, 0o1777)
        testimony.testify(is_async=True, engine="threads", directory=name)
        assert [said.pid for said in read_testimonies(Path(name))] == [os.getpid()]
        for file in Path(name).iterdir():
            os.chown(file, 65533, 65533)
        assert read_testimonies(Path(name)) == []
        child = process("os.setuid(65534)\n" + TESTIFY, DEEPSEEK_RUN_DIR=name)
        assert child.stdout.readline() == "1\n"
        assert [(said.pid, said.owner) for said in read_testimonies(Path(name))] == [(child.pid, 65534)]


def test_working_directory_that_is_gone(process):
    """A process whose working directory has been removed goes on."""
    child = process(
        "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        "testify(is_async=True, engine='threads'); print('lives')"
    )
    assert child.communicate(timeout=GIVE_UP_S)[0] == "lives\n"


def test_fork(process):
    """With --preload the master testifies; each of its forks does so for itself, and a fork of theirs does not."""
    code = """
testify(is_async=True, engine="threads")
parent = os.getpid()
def fork(then):
    pid = os.fork()
    if not pid:
        then()
        os._exit(0)
    os.waitpid(pid, 0)
def child():
    said = {each.pid: each.master for each in read_testimonies(Path(".deepseek"))}
    print(sorted(said) == sorted([parent, os.getpid()]), said[os.getpid()] == parent, flush=True)
    fork(lambda: print(len(read_testimonies(Path(".deepseek"))), flush=True))
fork(child)
"""
    child = process(code)
    assert child.communicate(timeout=GIVE_UP_S)[0] == "True True\n2\n"


def test_hidden_command_line(monkeypatch):
    """Where setproctitle has overwritten the command line it is told, without values of variables."""
    monkeypatch.setattr(testimony, "_TITLE", Path("/proc/self/cmdline").read_bytes()[:3])
    monkeypatch.setattr(
        sys, "orig_argv", ["python", "-m", "gunicorn", "-e", "KEY=sk-1", "-eB=2", "--env=C=3", "a:b"]
    )
    testimony.testify(is_async=True, engine="threads")
    (said,) = read_testimonies(Path(".deepseek"))
    assert said.command == ("python", "-m", "gunicorn", "-e", "KEY=", "-eB=", "--env=C=", "a:b")


def test_library_is_not_loaded():
    """A testimony needs the standard library only."""
    code = "import sys, deepseek_client.telemetry.testimony; print({'flask', 'requests', 'dotenv'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
