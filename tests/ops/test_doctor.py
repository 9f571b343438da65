import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from deepseek_client.ops.doctor import examine, read
from deepseek_client.ops.doctor.__main__ import main

ROOT = Path(__file__).parents[2]
GIVE_UP_S = 5
KEY = "sk-SECRET-0123456789"
TOKEN = "TOKEN-9876543210"
OURS = re.compile("HOST|PORT|LOG_FORMAT|NETRC|(WEB|GUNICORN|CELERY)_.*")

# What brings a finding: {variable: value}, its code, its level.
CASES = [
    ({"LLM_MAX_WORKERS": "five"}, "unreadable_setting", "error"),
    ({"PORT": "http"}, "unreadable_setting", "error"),
    ({"LOG_FORMAT": "xml"}, "unreadable_setting", "error"),
    ({"GUNICORN_CMD_ARGS": "--timeout x"}, "unreadable_setting", "error"),
    ({"GUNICORN_CMD_ARGS": "--timeout '30"}, "unreadable_setting", "error"),
    ({"HOST": "0.0.0.0"}, "public_without_token", "warning"),
    ({"HOST": "::"}, "public_without_token", "warning"),
    ({"HOST": "example.org"}, "public_without_token", "warning"),
    ({"GUNICORN_CMD_ARGS": "--bind unix:/run/x --bind :80"}, "public_without_token", "warning"),
    ({"GUNICORN_CMD_ARGS": "--timeout 25"}, "worker_timeout", "warning"),
    ({"GUNICORN_CMD_ARGS": "--graceful-timeout 24"}, "graceful_timeout", "warning"),
    ({"GUNICORN_CMD_ARGS": "--preload"}, "preload", "warning"),
    ({"LLM_DEADLINE_S": "60"}, "proxy_timeout", "hint"),
    ({"LLM_MAX_WORKERS": "6"}, "one_at_a_time", "hint"),
    ({"WEB_THREADS": "6"}, "threads_over_workers", "hint"),
    ({"LLM_BATCH_LIMIT": "126"}, "large_batch", "hint"),
    ({"DEEPSEEK_API_KEY": ""}, "no_key", "hint"),
    ({"WEB_API_TOKEN": KEY}, "token_is_key", "warning"),
    ({"DEEPSEEK_API_KEY": f'"{KEY}"'}, "quoted", "warning"),
    ({"DEEPSEEK_VERBOSE": "1"}, "verbose", "hint"),
    ({"DEEPSEEK_MODEL": "deepseek-chat"}, "retired_model", "hint"),
    ({"DEEPSEEK_TRANSPORT": "0"}, "retired_model", "error"),
    ({"DEEPSEEK_TRANSPORT": "0", "DEEPSEEK_MODEL": "deepseek-reasoner"}, "retired_model", "error"),
    ({"DEEPSEEK_MODEL": "deepseek-reasoner"}, "thinking_model", "warning"),
    ({"DEEPSEEK_MODEL": "deepseek-flash"}, "thinking_model", "warning"),
    ({"DEEPSEEK_MODEL": "deepseek-v4-pro"}, "thinking_model", "warning"),
    ({"DEEPSEEK_MODEL": "deepseek-flush"}, "unknown_model", "hint"),
    ({"LLM_MAX_WORKERS": "1000", "WEB_CONCURRENCY": "3"}, "account_limit", "warning"),
    ({"LLM_MAX_WORKERS": "251", "DEEPSEEK_MODEL": "deepseek-v4-pro"}, "account_limit", "warning"),
    ({"WEB_THREADS": "1000", "WEB_CONCURRENCY": "3", "USE_ASYNC_DEEPSEEK": "0"}, "account_limit", "warning"),
    ({"DEEPSEEK_TRANSPORT": "0"}, "no_transport", "hint"),
    ({"LLM_READ_TIMEOUT_S": "25"}, "read_timeout", "hint"),
    ({"LLM_DEADLINE_S": "26"}, "read_timeout", "hint"),
    ({"DEEPSEEK_BASE_URL": "https://api.deepseek.com/chat/completions"}, "base_url", "error"),
    ({"DEEPSEEK_BASE_URL": "http://llm.example.org"}, "key_in_clear", "warning"),
    ({"DEEPSEEK_BASE_URL": "http://127.0.0.1:9", "HTTP_PROXY": "http://p:1"}, "loopback_proxy", "error"),
    ({"DEEPSEEK_BASE_URL": "http://localhost:9", "all_proxy": "http://p:1"}, "loopback_proxy", "error"),
    ({"REQUESTS_CA_BUNDLE": "/nowhere/ca.pem"}, "ca_bundle", "error"),
    ({"USE_ASYNC_DEEPSEEK": "1"}, "toggle_shadowed", "hint"),
    ({"LLM_MAX_WORKER": "50"}, "unknown_variable", "warning"),
    ({"DEEPSEEK_APIKEY": "x", "DEEPSEEK_API_KEY": ""}, "unknown_variable", "warning"),
    ({"PROMETHEUS_MULTIPROC_DIR": "/dev/null/metrics"}, "metrics_directory", "error"),
]
# What comes near to a case and is fine, and whose finding it does not bring.
FINE = [
    ({"HOST": "0.0.0.0", "WEB_API_TOKEN": TOKEN}, "public_without_token"),
    ({"HOST": "::1"}, "public_without_token"),
    ({"HOST": "localhost"}, "public_without_token"),
    ({"HOST": "127.0.0.2"}, "public_without_token"),
    ({"GUNICORN_CMD_ARGS": "--bind unix:/run/x.sock"}, "public_without_token"),
    ({"LLM_DEADLINE_S": "300"}, "worker_timeout"),
    ({"LLM_DEADLINE_S": "300"}, "graceful_timeout"),
    ({"GUNICORN_CMD_ARGS": "--timeout 26"}, "worker_timeout"),
    ({"GUNICORN_CMD_ARGS": "--timeout 0"}, "worker_timeout"),
    ({"GUNICORN_CMD_ARGS": "--timeout 10 --threads 4"}, "worker_timeout"),
    ({"LLM_MAX_WORKERS": "50", "WEB_THREADS": "50"}, "one_at_a_time"),
    ({"LLM_MAX_WORKERS": "50", "WEB_THREADS": "50"}, "threads_over_workers"),
    ({"DEEPSEEK_BASE_URL": "https://other.example.org", "DEEPSEEK_MODEL": "x"}, "unknown_model"),
    ({"DEEPSEEK_BASE_URL": "https://other.example.org", "DEEPSEEK_TRANSPORT": "0"}, "retired_model"),
    ({"DEEPSEEK_MODEL": "deepseek-chat"}, "thinking_model"),
    ({"LLM_MAX_WORKERS": "50", "USE_ASYNC_DEEPSEEK": "0"}, "one_at_a_time"),
    ({"LLM_MAX_WORKERS": "1000", "WEB_CONCURRENCY": "2"}, "account_limit"),
    (
        {"LLM_MAX_WORKERS": "1000", "WEB_CONCURRENCY": "9", "DEEPSEEK_BASE_URL": "https://x.org"},
        "account_limit",
    ),
    ({"DEEPSEEK_BASE_URL": "http://127.0.0.1:9"}, "key_in_clear"),
    (
        {"DEEPSEEK_BASE_URL": "http://127.0.0.1:9", "HTTP_PROXY": "http://p:1", "NO_PROXY": "127.0.0.1"},
        "loopback_proxy",
    ),
    (
        {"DEEPSEEK_BASE_URL": "http://127.0.0.1:9", "HTTP_PROXY": "http://p:1", "http_proxy": ""},
        "loopback_proxy",
    ),
    ({"HTTPS_PROXY": "http://p:1"}, "loopback_proxy"),
    ({"LLM_USER_PATH": "of another program"}, "unknown_variable"),
    ({"WEB_API_TOKEN_OLD": "x", "WEB_API_TOKEN": TOKEN}, "unknown_variable"),
]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """An empty directory, and an environment without settings or what an earlier server left."""
    for name in list(os.environ):
        if OURS.fullmatch(name):
            monkeypatch.delenv(name)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def findings_for(monkeypatch):
    """The findings with these variables in the process environment, and a key."""

    def find(hosts=1, **env):
        for name, value in {"DEEPSEEK_API_KEY": KEY, **env}.items():
            monkeypatch.setenv(name, value)
        return examine(read(hosts))

    return find


def codes(findings):
    """Their codes, as a set of (code, level)."""
    return {(finding.code, finding.level) for finding in findings}


def write_env(*lines, mode=0o600):
    """Makes a .env of the lines."""
    Path(".env").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path(".env").chmod(mode)


def ids(cases):
    """Names for a parametrised test."""
    return ["-".join([case[1], *case[0]]) for case in cases]


def test_default_with_a_key(findings_for):
    """The defaults and a key bring nothing, not even a hint."""
    assert findings_for() == []


def test_default_without_a_key(findings_for):
    """The defaults alone bring one hint: the sandbox answers."""
    findings = findings_for(DEEPSEEK_API_KEY="")
    assert codes(findings) == {("no_key", "hint")}
    assert "sandbox" in findings[0].why


def test_env_example(monkeypatch):
    """A copy of .env.example brings what the defaults bring."""
    write_env((ROOT / ".env.example").read_text(encoding="utf-8").replace("# DEEP", "DEEP"))
    assert codes(examine(read())) == {("no_key", "hint")}


@pytest.mark.parametrize(("env", "code", "level"), CASES, ids=ids(CASES))
def test_cause_brings_its_finding(findings_for, env, code, level):
    """Each cause brings its finding, with what, why and remedy as sentences."""
    findings = findings_for(**env)
    assert (code, level) in codes(findings)
    for finding in findings:
        assert all(len(text) > 5 and "\n" not in text for text in (finding.what, finding.why, finding.remedy))


@pytest.mark.parametrize(("env", "code"), FINE, ids=ids(FINE))
def test_what_comes_near_to_a_cause_is_fine(findings_for, env, code):
    """What only looks like a cause does not bring the finding."""
    assert code not in {finding.code for finding in findings_for(**env)}


def test_each_finding_has_a_case():
    """No code of the package is without a test here."""
    code = re.compile(r'Finding\(\s*(?:"\w+"|level),\s*"(\w+)"')
    files = (ROOT / "deepseek_client" / "ops" / "doctor").glob("*.py")
    known = {name for file in files for name in code.findall(file.read_text(encoding="utf-8"))}
    here = Path(__file__).read_text(encoding="utf-8")
    assert len(known) > 25
    assert [name for name in sorted(known) if f'"{name}"' not in here] == []


def test_the_worst_comes_first(findings_for):
    """Errors come before warnings, warnings before hints."""
    found = findings_for(LLM_MAX_WORKERS="6", DEEPSEEK_TRANSPORT="0", LLM_QUEUE_LIMITS="9")
    assert [each.level for each in found] == ["error", "warning", "hint", "hint"]


def test_every_wrong_setting_is_named_once(findings_for):
    """All settings that cannot be read are named, each once, by name and value."""
    found = findings_for(LLM_MAX_WORKERS="five", LLM_DEADLINE_S="soon", PORT="http", WEB_THREADS="0")
    texts = [each.what.partition(":")[0] for each in found if each.code == "unreadable_setting"]
    # gunicorn's file stops at its first: WEB_THREADS comes once PORT is right.
    assert sorted(texts) == ["LLM_DEADLINE_S='soon'", "LLM_MAX_WORKERS='five'", "PORT='http'"]


def test_hosts_multiply(findings_for):
    """126 hosts of 2 x 10 calls are above 2500, 125 are not."""
    assert findings_for(125, LLM_MAX_WORKERS="10", WEB_THREADS="10") == []
    [finding] = findings_for(126, LLM_MAX_WORKERS="10", WEB_THREADS="10")
    assert finding.code == "account_limit"
    assert "126 (hosts) x 2 (WEB_CONCURRENCY) x 10 (LLM_MAX_WORKERS) = 2520" in finding.what
    assert "to 9," in finding.remedy


def test_too_few_open_files(findings_for):
    """A limit below a connection per call and what a process has beside is a warning."""
    findings_for()
    situation = read()
    assert examine(replace(situation, open_files=70)) == []
    assert examine(replace(situation, open_files=-1)) == []
    assert codes(examine(replace(situation, open_files=69))) == {("open_files", "warning")}


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
def test_env_file_that_others_read(mode, expected, name):
    """A .env with a key or a token is a warning when everybody may open it, a hint when its group may."""
    write_env(f"{name}={KEY}", mode=mode)
    assert codes(examine(read())) - {("no_key", "hint")} == expected


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
    assert "bin/toggle-async cannot roll back" in found[0].why


@pytest.mark.parametrize(
    ("line", "code", "level"),
    [
        ("LLM_MAX_WORKER=50", "unknown_variable", "warning"),
        ("LOGFORMAT=json", "unknown_variable", "warning"),
        ("LLM_COLOUR=red", "unknown_variable", "hint"),
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
    assert finding.what == ".env cannot be read: it is not a file"


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
def test_metrics_directory_of_another_server(findings_for, tmp_path):
    """A directory in which the workers of another server count is a warning, of the one on PORT it is none."""
    code = (
        "from deepseek_client.telemetry import metric_files; "
        "metric_files.number(); print('counts', flush=True); input()"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert worker.stdout.readline() == b"counts\n"
        found = findings_for(PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
        assert codes(found) == {("shared_metrics", "warning")}
        assert f"process {os.getpid()}" in found[0].what
        Path(".gunicorn-5001.pid").write_text(f"{os.getpid()}\n")
        assert findings_for(PORT="5001") == []
    finally:
        worker.communicate(b"\n", timeout=GIVE_UP_S)


@pytest.mark.parametrize("directory", ["deepseek-metrics-1-x", None])
def test_reading_changes_nothing(monkeypatch, tmp_path, directory):
    """Neither the environment nor the directory is another one afterwards."""
    if directory:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", directory)
    before = dict(os.environ)
    read()
    assert dict(os.environ) == before
    assert [*os.listdir(tmp_path), *os.listdir(tmp_path / "tmp")] == ["tmp"]


def test_no_secret_in_the_repr(findings_for):
    """The situation's repr does not show the key, nor the environment."""
    findings_for()
    assert KEY not in repr(read())


def test_no_secret_is_shown(findings_for, capsys):
    """Key and token are in no output, wherever they were put, by mistake too."""
    write_env("DEEPSEEK_API_KEY=sk-OTHER-0123456789", f"WEB_API_TOKEN={KEY}", f"LLM_{KEY}=1", mode=0o644)
    findings = findings_for(LLM_MAX_WORKERS=KEY, DEEPSEEK_MODEL=KEY, LOG_FORMAT=TOKEN, WEB_API_TOKEN=TOKEN)
    assert {"shadowed", "open_env_file", "unreadable_setting"} <= {finding.code for finding in findings}
    outputs = []
    for arguments in ([], ["--json"]):
        assert main(arguments) == 1
        outputs += capsys.readouterr()
    for secret in (KEY, "sk-OTHER-0123456789", TOKEN):
        assert [output for output in outputs if secret.lower() in output.lower()] == []


@pytest.mark.parametrize(
    ("env", "code"),
    [({}, 0), ({"DEEPSEEK_VERBOSE": "1"}, 0), ({"HOST": "0.0.0.0"}, 1), ({"PORT": "x"}, 1)],
    ids=["nothing", "hint", "warning", "error"],
)
def test_exit_code(findings_for, capsys, env, code):
    """0 means nothing worse than a hint, 1 an error or a warning; the text has each finding, the JSON its fields."""
    findings = findings_for(**env)
    assert main([]) == code
    text = capsys.readouterr().out
    assert all(finding.what in text and finding.remedy in text for finding in findings)
    assert text.startswith("doctor: nothing found" if not findings else f"{findings[0].level}: ")
    assert main(["--json"]) == code
    assert json.loads(capsys.readouterr().out) == [asdict(finding) for finding in findings]


@pytest.mark.parametrize("arguments", [["--hosts", "0"], ["--hosts", "x"], ["--hosts"], ["--jsn"], ["x"]])
def test_wrong_arguments(capsys, arguments):
    """A wrong argument is an exit with 2 and one line."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    output, error = capsys.readouterr()
    assert (output, error.count("\n")) == ("", 1)
    assert error.startswith("doctor: ")
