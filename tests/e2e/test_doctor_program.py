import json
import os
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.patience import GIVE_UP_S

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "bin" / "serve"
KEY = "sk-SECRET-0123456789"
# Reserved for documentation: no machine has it, so whoever is to listen there is refused by the system.
NOBODYS_ADDRESS = "192.0.2.1"


def run(command, *arguments, **env):
    """Runs a command of bin/ from elsewhere: the exit code, standard output and error."""
    ended = subprocess.run(
        [ROOT / "bin" / command, *arguments],
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_finding_of_the_command():
    """The command says what it found, why and what helps, shows no key, and ends with 1."""
    code, output, error = run("doctor", DEEPSEEK_API_KEY=KEY, GUNICORN_CMD_ARGS="--timeout 5")
    assert (code, error) == (1, "")
    assert "warning: gunicorn's timeout of 5 s is not above LLM_DEADLINE_S=25. [worker_timeout]\n" in output
    assert "Remedy: Make it 35 or more (--timeout, " in output
    assert KEY not in output


def test_json_of_the_command():
    """--json is a list of objects, and --hosts counts."""
    code, output, _ = run("doctor", "--json", "--hosts", "1000", DEEPSEEK_API_KEY=KEY)
    findings = json.loads(output)
    assert code == 1
    assert all(set(finding) == {"level", "code", "what", "why", "remedy"} for finding in findings)
    assert "account_limit" in {finding["code"] for finding in findings}


@pytest.mark.parametrize(("arguments", "code", "lines"), [(["--help"], 0, 0), (["--hosts", "no"], 2, 1)])
def test_arguments_of_the_command(arguments, code, lines):
    """--help ends with 0 and names the options; a wrong argument ends with 2 and one line."""
    found, output, error = run("doctor", *arguments)
    assert (found, error.count("\n")) == (code, lines)
    assert ("--hosts" in output) == (code == 0)


def test_serve_warns_of_a_public_bind():
    """bin/serve warns loudly, before it listens, when others could reach it without a token."""
    code, output, error = run("serve", HOST=NOBODYS_ADDRESS, PORT="5999", DEEPSEEK_API_KEY=KEY)
    bar, warning, *_, refusal = error.splitlines()
    assert (code, output, set(bar)) == (1, "", {"*"})
    assert warning.startswith(f"warning: {NOBODYS_ADDRESS}:5999 can be reached from other machines")
    assert refusal.startswith(f"serve: cannot listen on {NOBODYS_ADDRESS}:5999")
    assert KEY not in error


def test_serve_does_not_warn_when_there_is_a_token():
    """With a token the same bind brings no warning, and the token is not shown."""
    env = {"HOST": NOBODYS_ADDRESS, "PORT": "5999", "WEB_API_TOKEN": "TOKEN-9876543210"}
    _, _, error = run("serve", DEEPSEEK_API_KEY=KEY, **env)
    assert "can be reached" not in error
    assert env["WEB_API_TOKEN"] not in error


@pytest.mark.parametrize("output", [b"", b"Traceback"], ids=["nothing", "nonsense"])
def test_serve_starts_without_a_doctor(monkeypatch, capsys, output):
    """A doctor that fails is one line, and no reason not to start."""
    serve = runpy.run_path(str(SERVE), run_name="serve")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: SimpleNamespace(stdout=output))
    assert serve["ask_doctor"]() == []
    assert capsys.readouterr().err == "serve: nobody has looked at the settings: bin/doctor failed\n"


def test_serve_says_what_is_worse_than_a_hint(capsys):
    """Of errors, warnings and hints bin/serve prints the first two, and nothing at all when there is none."""
    warn = runpy.run_path(str(SERVE), run_name="serve")["warn"]
    texts = {"code": "c", "what": "What.", "why": "Why.", "remedy": "Help."}
    hint, warning, error = ({"level": level, **texts} for level in ("hint", "warning", "error"))
    warn([hint])
    assert capsys.readouterr() == ("", "")
    warn([error, warning, hint])
    assert capsys.readouterr().err.splitlines()[1:-1] == [
        "error: What. Why. Help.",
        "warning: What. Why. Help.",
    ]
