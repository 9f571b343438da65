import os
import signal
import sys
from pathlib import Path

import pytest
from support.gunicorns import APPLICATION, environment

from deepseek_client.ops import gunicorn_command
from deepseek_client.ops.deployment import Deployment
from deepseek_client.ops.gunicorn_command import Command, gunicorn_arguments, is_genuine
from deepseek_client.ops.refusal import Refusal

OWN = (sys.executable, "-m", "gunicorn")


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("/venv/bin/python /venv/bin/gunicorn -w 2 a:b", ["-w", "2", "a:b"]),
        ("/venv/bin/gunicorn a:b", ["a:b"]),
        ("python3 -m gunicorn a:b", ["a:b"]),
        ("python3 -m gunicorn.app.wsgiapp a:b", ["a:b"]),
        ("python -u -X dev -Wignore -mgunicorn a:b", ["a:b"]),
        ("python -Im gunicorn a:b", ["a:b"]),
        ("/venv/bin/python /lib/gunicorn/__main__.py a:b", ["a:b"]),
        ("/usr/bin/python3 /usr/bin/gunicorn3 a:b", ["a:b"]),
        ("python serve.py gunicorn", None),
        ("python -m waitress gunicorn:app", None),
        ("python -c gunicorn", None),
        ("python -W gunicorn", None),
        ("vim gunicorn.conf.py", None),
        ("/usr/bin/tail -f gunicorn.log", None),
        ("python", None),
        ("gunicorn", []),
        ("", None),
    ],
)
def test_whether_a_command_is_gunicorn(line, arguments):
    """Only gunicorn's own command is taken for it, however the interpreter was told to run it."""
    assert gunicorn_arguments(line.split()) == arguments


def script(path, text="", mode=0o755):
    """Makes a script."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


ENTRY = "from gunicorn.app.wsgiapp import run\nrun()\n"


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("./gunicorn", {"gunicorn": "import time; time.sleep(300)"}, False),
        ("./gunicorn", {"gunicorn": "x", "python_paths.py": ""}, False),
        ("./gunicorn", {}, False),
        ("bin/gunicorn", {"bin/gunicorn": "x", "bin/python": ""}, True),
        ("usr/gunicorn3", {"usr/gunicorn3": "x", "usr/python3": ""}, True),
        ("local/gunicorn", {"local/gunicorn": ENTRY}, True),
        (
            "old/gunicorn",
            {"old/gunicorn": "load_entry_point('gunicorn', 'console_scripts', 'gunicorn')"},
            True,
        ),
        ("gunicorn/__main__.py", {"gunicorn/__main__.py": ENTRY, "gunicorn/app/wsgiapp.py": ""}, True),
        ("gunicorn/__main__.py", {"gunicorn/__main__.py": ENTRY}, False),
        ("-mgunicorn", {}, True),
        ("-mgunicorn", {"gunicorn.py": ""}, False),
        ("serve.py", {"serve.py": ENTRY, "python": ""}, False),
    ],
)
def test_genuine(deployment, name, files, expected):
    """Only what is installed as gunicorn may be executed, not somebody's script of that name."""
    for path, text in files.items():
        script(path, text)
    assert is_genuine(["python3", name, "app:app"], {}, str(deployment)) is expected


@pytest.mark.parametrize(("script_mode", "place_mode"), [(0o757, 0o755), (0o755, 0o777)])
def test_script_that_everybody_may_change(deployment, script_mode, place_mode):
    """A script that everybody may change or replace is not executed."""
    script("bin/gunicorn", ENTRY)
    words = ["python3", "bin/gunicorn", "app:app"]
    assert is_genuine(words, {}, str(deployment))
    Path("bin/gunicorn").chmod(script_mode)
    Path("bin").chmod(place_mode)
    assert not is_genuine(words, {}, str(deployment))


def test_pipe_in_place_of_a_script(deployment):
    """A pipe of that name is not waited at."""
    os.mkfifo("gunicorn")
    assert not is_genuine(["python3", "gunicorn"], {}, str(deployment))


def test_own_gunicorn(deployment):
    """The gunicorn of this environment is genuine, by its script and by its module."""
    for words in (OWN, (sys.executable, str(Path(sys.executable).with_name("gunicorn")))):
        assert is_genuine(words, {}, str(deployment))


@pytest.fixture
def command(deployment):
    """The command of a gunicorn that might serve the directory, with these options."""
    Path("app.py").write_text(APPLICATION)

    def make(*options, words=OWN, **env):
        return Command((*words, *options, "app:app"), environment(deployment, **env), str(deployment))

    return make


def test_rehearsal(command):
    """It loads configuration and application, and returns gunicorn's options, whatever said them."""
    Path("own.py").write_text("graceful_timeout = 7\nraw_env = ['A=1']\n")
    options = command("-c", "own.py", "-b", "unix:x", GUNICORN_CMD_ARGS="--timeout 9").rehearse()
    told = [options[name] for name in ("graceful_timeout", "raw_env", "timeout", "bind", "preload_app")]
    assert told == [7, ["A=1"], 9, ["unix:x"], False]


def test_rehearsal_leaves_nothing(command):
    """The rehearsal neither counts nor testifies, and its directory is gone afterwards."""
    before = os.environ.get("TMPDIR")
    command(PROMETHEUS_MULTIPROC_DIR="/nowhere").rehearse(USE_ASYNC_DEEPSEEK="0")
    assert os.environ.get("TMPDIR") == before
    assert {path.name for path in Path(".").iterdir()} <= {"app.py", "__pycache__"}


@pytest.mark.parametrize(
    ("broken", "error", "code"),
    [
        ({"app.py": "raise RuntimeError('boom')"}, "RuntimeError: boom", 1),
        ({"app.py": "1 +"}, "SyntaxError: invalid syntax", 1),
        ({"own.py": "raise SystemExit(2)"}, "exit code 2", 2),
        ({"own.py": "timeout = 'x'"}, "Error: invalid literal for int() with base 0: 'x'", 1),
        ({".env": "LLM_MAX_WORKERS=five"}, "LLM_MAX_WORKERS='five': need a whole number from 1 to 1000", 2),
    ],
    ids=["application", "syntax", "exit", "configuration", "setting"],
)
def test_what_would_end_the_server(command, broken, error, code):
    """What does not load is refused in one line that names the reason; wrong settings with 2."""
    Path("own.py").touch()
    for name, text in broken.items():
        Path(name).write_text(text)
    with pytest.raises(Refusal) as refused:
        command("-c", "own.py").rehearse()
    assert str(refused.value) == f"a reload would end the server: {error}"
    assert refused.value.exit_code == code


def test_rehearsal_has_an_end(command, monkeypatch):
    """An application that does not come back from loading is given up."""
    monkeypatch.setattr(gunicorn_command, "_GIVE_UP_S", 0.5)
    Path("app.py").write_text("import threading; threading.Event().wait()")
    with pytest.raises(Refusal, match=r"the application did not load in 0\.5 s"):
        command().rehearse()


def test_what_the_application_leaves_running(command):
    """A process that the application starts while it loads does not hold the rehearsal."""
    code = "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid, file=open('pid', 'w'))\n"
    Path("app.py").write_text(code + APPLICATION)
    try:
        assert command().rehearse()["preload_app"] is False
    finally:
        os.kill(int(Path("pid").read_text()), signal.SIGKILL)


def test_interpreter_that_is_gone(command):
    """A server whose interpreter has been removed since is refused in one sentence."""
    with pytest.raises(Refusal, match="cannot start /nowhere/python, which runs the server"):
        command(words=("/nowhere/python", "-m", "gunicorn")).rehearse()


@pytest.mark.parametrize(
    ("options", "start", "graceful_s"),
    [(["-c", "own.py"], ["PWD"], 7), ([], [], 30)],
    ids=["told_by_a_shell", "not_told"],
)
def test_relative_words(gunicorn, deployment, options, start, graceful_s):
    """A relative --chdir is not followed twice, and a relative path means where a shell has started the server."""
    (deployment.parent / "own.py").write_text("graceful_timeout = 7\n")
    start = {name: str(deployment.parent) for name in start}
    gunicorn("--chdir", "deployment", *options, cwd=deployment.parent, **start)
    (server,) = Deployment({}).servers
    assert server.command.rehearse()["graceful_timeout"] == graceful_s


def test_options_without_the_application(command):
    """The options alone do not need the application to load; what gunicorn cannot read is refused with 2."""
    Path("app.py").write_text("raise RuntimeError")
    options = command("--threads", "4", GUNICORN_CMD_ARGS="--workers 3").options()
    assert (options["threads"], options["workers"], options["worker_class"]) == (4, 3, "sync")
    with pytest.raises(Refusal) as refused:
        command("--threads", "x").options()
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)
