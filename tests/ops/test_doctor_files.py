"""What the doctor says of the files that it finds: .env, .netrc, and directories of metrics."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.diagnoses import KEY, TOKEN, codes, write_env
from support.patience import GIVE_UP_S

from deepseek_client import ConfigError
from deepseek_client.ops.doctor import examine
from deepseek_client.settings_file import read_env_file

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (0o600, set()),
        (0o640, {("open_env_file", "hint")}),
        (0o644, {("open_env_file", "warning")}),
        (0o602, {("open_env_file", "warning")}),
    ],
)
@pytest.mark.parametrize("name", ["DEEPSEEK_API_KEY", "WEB_API_TOKEN"])
def test_env_file_that_others_read(findings_for, mode, expected, name):
    """A .env with a key or a token is a warning when everybody may open it, a hint when its group may."""
    write_env(f"{name}=other-secret", mode=mode)
    assert {code for code in codes(findings_for()) if code[0] == "open_env_file"} == expected


def test_env_file_without_a_secret(findings_for):
    """A .env that holds no secret may be read by all."""
    write_env("LLM_MAX_WORKERS=5", mode=0o644)
    assert findings_for() == []


def test_shadowed_setting(findings_for):
    """A variable that the environment and .env set differently is a warning; the same in both is none."""
    write_env("LLM_MAX_WORKERS=7", "LLM_QUEUE_LIMIT=9", f"DEEPSEEK_API_KEY={KEY}", "SOMEBODYS=x")
    found = findings_for(LLM_MAX_WORKERS="5", LLM_QUEUE_LIMIT=" 9", SOMEBODYS="y")
    assert codes(found) == {("shadowed", "warning")}
    assert "LLM_MAX_WORKERS" in found[0].what


def test_shadowed_switch(findings_for):
    """A shadowed USE_ASYNC_DEEPSEEK says that the rollback would not work."""
    write_env("USE_ASYNC_DEEPSEEK=0")
    found = findings_for(USE_ASYNC_DEEPSEEK="1")
    assert codes(found) == {("shadowed", "warning")}
    assert found[0].why.endswith("it cannot roll back.")


@pytest.mark.parametrize(
    ("lines", "env"),
    [
        ([f"WEB_API_TOKEN={TOKEN}", "WEB_API_TOKEN="], {}),
        ([f"WEB_API_TOKEN={TOKEN}"], {"WEB_API_TOKEN": " "}),
    ],
    ids=["file", "environment"],
)
def test_blanked_token(findings_for, lines, env):
    """A token that is blank in the end, although .env gives it a value, is said loudly, and once."""
    write_env(*lines)
    (finding,) = findings_for(**env)
    assert (finding.code, finding.level) == ("token_blanked", "warning")
    assert "THE SERVER ASKS NOBODY FOR A TOKEN" in finding.why


@pytest.mark.parametrize(
    ("line", "code", "level"),
    [
        ("LLM_MAX_WORKER=50", "unknown_variable", "warning"),
        ("LOGFORMAT=json", "unknown_variable", "warning"),
        ("GUNICORN_CMD_ARGS=--preload", "unread_variable", "warning"),
        ("LLM_MAX_WORKERS 50", "unread_line", "warning"),
        ("LLM_QUEUE_LIMIT=100\nLLM_QUEUE_LIMIT=100", "assigned_twice", "warning"),
    ],
)
def test_line_of_the_env_file(findings_for, line, code, level):
    """Lines of .env that have no effect are named, whoever is meant by them."""
    write_env("# a comment", line, "SOMEBODYS=x")
    assert codes(findings_for()) == {(code, level)}


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)],
                         ids=["directory", "fifo", "dangling"])  # fmt: skip
def test_env_file_that_is_no_file(findings_for, make):
    """A .env that nothing can be read from is an error: the server would run on defaults, or wait for ever."""
    make(".env")
    (finding,) = [finding for finding in findings_for() if finding.code == "unreadable_setting"]
    with pytest.raises(ConfigError) as refused:  # what the server says that refuses to start
        read_env_file()
    assert finding.what == str(refused.value)


def test_env_file_that_is_not_text(findings_for):
    """A .env that cannot be decoded is one error, and the environment is examined all the same."""
    Path(".env").write_bytes(b"LLM_MAX_WORKERS=\xff\xfe")
    assert [each.code for each in findings_for(DEEPSEEK_VERBOSE="1")] == ["unreadable_setting", "verbose"]


@pytest.mark.parametrize("entry", ["machine api.deepseek.com", "default"])
def test_netrc(findings_for, entry):
    """A netrc entry that fits the API's host is an error: it replaces the key."""
    Path(".netrc").write_text(f"{entry} login x password y\n")
    Path(".netrc").chmod(0o600)
    assert codes(findings_for()) == {("netrc", "error")}


def test_left_over_metrics(findings_for, tmp_path):
    """A metrics directory whose server has ended is a hint, that of a living one is none."""
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    (tmp_path / "tmp" / f"deepseek-metrics-{os.getpid()}-x").mkdir()
    assert findings_for() == []
    (tmp_path / "tmp" / f"deepseek-metrics-{ended.stdout.strip()}-x").mkdir()
    assert codes(findings_for()) == {("left_over_metrics", "hint")}


def test_metrics_directory_that_can_be_made(findings_for, tmp_path):
    """A directory that does not exist yet is made at the start: fine."""
    assert findings_for(PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "a" / "b")) == []
    assert os.listdir(tmp_path) == ["tmp"]


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="learns from /proc/locks who holds a lock")
def test_metrics_directory_of_another_server(findings_for, situation_for, tmp_path):
    """A directory in which the workers of another server count is a warning, of one of this directory it is none."""
    code = (
        "from deepseek_client.telemetry import metrics; metrics.exposition(); print(1, flush=True); input()"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert worker.stdout.readline() == b"1\n"
        found = findings_for(PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
        assert codes(found) == {("shared_metrics", "warning")}
        assert f"process {os.getpid()}" in found[0].what
        ours = replace(
            situation_for(PROMETHEUS_MULTIPROC_DIR=str(tmp_path)), masters=frozenset({os.getpid()})
        )
        assert examine(ours) == []
    finally:
        worker.communicate(b"\n", timeout=GIVE_UP_S)
