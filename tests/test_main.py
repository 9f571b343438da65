import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import GIVE_UP_S

from deepseek_client import __main__ as command
from deepseek_client import __version__

ROOT = Path(__file__).parents[1]
BARE = (sys.executable, "-I", "-S")
"""An interpreter without any installed package."""


def run(*arguments, python=(sys.executable,), cwd=ROOT):
    """Runs `python -m deepseek_client`: exit code, standard output and error."""
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from deepseek_client.__main__ import main"
    ended = subprocess.run(
        [*python, "-c", f"{code}; sys.exit(main())", ROOT, *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("name", ["doctor", "toggle", "worker", "gunicorn-conf", "version"])
def test_help(name):
    """Each command has a help, which needs no installed package."""
    code, output, error = run(name, "--help", python=BARE)
    assert (code, error) == (0, "")
    assert output.startswith(f"usage: deepseek-client {name} ")


def test_help_of_all():
    """The command itself names its subcommands and the exit codes."""
    code, output, error = run("--help", python=BARE)
    assert (code, error) == (0, "")
    words = (
        "doctor",
        "toggle",
        "worker",
        "tune",
        "sandbox",
        "console",
        "gunicorn-conf",
        "version",
        "Exit codes",
    )
    assert [word for word in words if word not in output] == []


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ("", "deepseek-client: "),
        ("rollback", "deepseek-client: "),
        ("toggle", "toggle: "),
        ("toggle on", "toggle: "),
        ("toggle enable disable", "deepseek-client: "),
        ("toggle enable --port=1", "deepseek-client: "),
        ("toggle enable --wait 0", "toggle: "),
        ("toggle enable --wait x", "toggle: "),
        ("toggle enable --pid 0", "toggle: "),
        ("doctor --hosts 0", "doctor: "),
        ("doctor --hosts x", "doctor: "),
        ("doctor --hosts", "doctor: "),
        ("doctor --jsn", "deepseek-client: "),
    ],
)
def test_wrong_arguments(arguments, start):
    """Wrong arguments are 2 and one line, which needs no installed package."""
    code, output, error = run(*arguments.split(), python=BARE)
    assert (code, output, error.count("\n"), error[: len(start)]) == (2, "", 1, start)


def test_version(capsys):
    """`version` prints the version."""
    assert command.main(["version"]) == 0
    assert capsys.readouterr() == (f"{__version__}\n", "")


@pytest.mark.parametrize("arguments", [["toggle", "status"], ["doctor"]], ids=" ".join)
def test_what_a_rollback_loads(tmp_path, arguments):
    """toggle and doctor load neither Flask nor requests, from their start to their end."""
    code = f"""
import sys
from deepseek_client.__main__ import main
main({arguments!r})
print(*{{"flask", "requests", "urllib3", "prometheus_client", "webapp"}} & {{*sys.modules}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    assert done.stdout.splitlines()[-1] == "", done.stderr


def test_sandbox_without_its_extra():
    """Without aiohttp the sandbox is one line that says how to get it."""
    code, output, error = run("sandbox", "--help", python=BARE)
    assert (code, output) == (1, "")
    assert error == "sandbox: need aiohttp: pip install 'deepseek-client-async[sandbox]'\n"


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["--port", "x"], 2)], ids=["help", "wrong"]
)
def test_arguments_of_the_sandbox(capsys, arguments, code):
    """The sandbox's arguments are its own."""
    with pytest.raises(SystemExit) as left:
        command.main(["sandbox", *arguments])
    output, error = capsys.readouterr()
    assert (left.value.code, "--latency-ms" in output, error.count("\n")) == (code, code == 0, int(code == 2))


def test_interrupted(monkeypatch, capsys):
    """Ctrl-C is one line, and for the switch it says how to learn what runs now."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("deepseek_client.ops.toggle.main", interrupt)
    assert command.main(["toggle", "enable"]) == 1
    said = "toggle: interrupted (deepseek-client toggle status says what runs now)\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("name", ["toggle-async", "doctor"])
def test_covers(name):
    """bin/* give their arguments on: --help is the subcommand's."""
    done = subprocess.run(
        [ROOT / "bin" / name, "--help"], cwd="/", capture_output=True, text=True, timeout=GIVE_UP_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: deepseek-client {name.partition('-')[0]} ")


@pytest.mark.parametrize(
    "redirection", [">&-", ">/dev/full", "2>&-", "2>/dev/full", "<&- >&- 2>&-", "| head -0"]
)
@pytest.mark.parametrize(
    "command", ["version", "doctor --json", "toggle status", "--help", "sandbox --port=-1"]
)
def test_output_that_nobody_takes(tmp_path, command, redirection):
    """A command whose output is closed, full or without reader goes on without it, and never shows a traceback."""
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m deepseek_client {command} {redirection}', sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    assert done.returncode in (0, 1, 2)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_answer_that_was_lost(tmp_path):
    """An answer that a full disk has not taken is an exit with 1, and one line says why."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "deepseek_client", "version"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=GIVE_UP_S,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "version: the output cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize(
    ("arguments", "need"),
    [
        ("tune --p50-ms 0", "need milliseconds more than 0 and at most 600000 "),
        ("tune --max-calls 1", "need calls from 2 to 1000000 "),
        ("toggle status --pid 0", "need a pid from 1 to 2147483647 "),
    ],
)
def test_span_of_a_number(arguments, need):
    """A number that is refused is told what is needed, in plain digits, and nothing that would be refused, too."""
    assert need in run(*arguments.split())[2]
