import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.gunicorns import Gunicorn

from deepseek_client import ConfigError
from deepseek_client.ops.doctor import Server, examine, main, read
from deepseek_client.ops.doctor import situation as looked_at
from deepseek_client.ops.doctor.texts import TEXTS
from deepseek_client.settings_file import read_env_file

ROOT = Path(__file__).parents[2]
GIVE_UP_S = 20
QUEUE = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}  # nobody is there
LOCAL = "http://127.0.0.1:9"
KEY = "sk-SECRET-0123456789"
TOKEN = "TOKEN-9876543210"
OURS = re.compile("HOST|PORT|LOG_FORMAT|NETRC|(WEB|GUNICORN|CELERY)_.*")

# What brings a finding: {variable: value}, its code, its level.
CASES = [
    ({"LLM_MAX_WORKERS": "five"}, "unreadable_setting", "error"),
    ({"LOG_FORMAT": "xml"}, "unreadable_setting", "error"),
    ({"server": {"bind": ("0.0.0.0:80",)}}, "public_without_token", "warning"),
    ({"server": {"bind": ("[::]:80",)}}, "public_without_token", "warning"),
    ({"server": {"bind": ("example.org:80",)}}, "public_without_token", "warning"),
    ({"server": {"bind": ("unix:/run/x", ":80")}}, "public_without_token", "warning"),
    ({"server": {"timeout": 25}}, "worker_timeout", "warning"),
    ({"server": {"graceful_timeout": 24}}, "graceful_timeout", "warning"),
    ({"is_container": True}, "container_stop", "hint"),
    ({"server": {"bind": ("0.0.0.0:80",), "threads": 4}}, "keepalive", "hint"),
    ({"server": {"bind": ("0.0.0.0:80",), "worker_class": "gevent", "keepalive": 60}}, "keepalive", "hint"),
    ({"server": {"preload_app": True}}, "preload", "warning"),
    ({"server": None}, "no_server", "hint"),
    ({"LLM_DEADLINE_S": "60"}, "proxy_timeout", "hint"),
    ({"LLM_MAX_WORKERS": "6"}, "one_at_a_time", "hint"),
    ({"server": {"threads": 6}}, "threads_over_workers", "hint"),
    ({"server": {"threads": 6, "worker_class": "gthread"}}, "threads_over_workers", "hint"),
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
    ({"LLM_MAX_WORKERS": "1000", "server": {"workers": 3}}, "account_limit", "warning"),
    ({"LLM_MAX_WORKERS": "251", "DEEPSEEK_MODEL": "deepseek-v4-pro"}, "account_limit", "warning"),
    (
        {"LLM_MAX_WORKERS": "1000", "server": {"workers": 3}, "LLM_ACCOUNT_LIMIT": "2501", **QUEUE},
        "account_limit",
        "warning",
    ),
    (
        {"server": {"threads": 1000, "workers": 3}, "USE_ASYNC_DEEPSEEK": "0"},
        "account_limit",
        "warning",
    ),
    ({"DEEPSEEK_TRANSPORT": "0"}, "no_transport", "hint"),
    ({"LLM_ENGINE": "loop"}, "loop_engine", "hint"),
    ({"LLM_READ_TIMEOUT_S": "25"}, "read_timeout", "hint"),
    ({"LLM_DEADLINE_S": "26"}, "read_timeout", "hint"),
    ({"DEEPSEEK_BASE_URL": "https://api.deepseek.com/chat/completions"}, "base_url", "error"),
    ({"DEEPSEEK_BASE_URL": "http://llm.example.org"}, "key_in_clear", "warning"),
    ({"DEEPSEEK_BASE_URL": LOCAL, "HTTP_PROXY": "http://p:1"}, "loopback_proxy", "error"),
    ({"DEEPSEEK_BASE_URL": "http://localhost:9", "all_proxy": "http://p:1"}, "loopback_proxy", "error"),
    ({"REQUESTS_CA_BUNDLE": "/nowhere/ca.pem"}, "ca_bundle", "error"),
    ({"USE_ASYNC_DEEPSEEK": "1"}, "toggle_shadowed", "hint"),
    ({"LLM_MAX_WORKER": "50"}, "unknown_variable", "warning"),
    ({"DEEPSEEK_APIKEY": "x", "DEEPSEEK_API_KEY": ""}, "unknown_variable", "warning"),
    ({"PROMETHEUS_MULTIPROC_DIR": "/dev/null/metrics"}, "metrics_directory", "warning"),
]
# What comes near to a case and is fine, and whose finding it does not bring.
FINE = [
    ({"server": {"bind": ("0.0.0.0:80",)}, "WEB_API_TOKEN": TOKEN}, "public_without_token"),
    ({"server": {"bind": ("[::1]:80",)}}, "public_without_token"),
    ({"server": {"bind": ("localhost:80", "127.0.0.2:80")}}, "public_without_token"),
    ({"server": {"bind": ("unix:/run/x.sock", "fd://3")}}, "public_without_token"),
    ({"server": {"bind": ("0.0.0.0:80",)}, "is_webapp": False}, "public_without_token"),
    ({"is_container": True, "server": {"graceful_timeout": 10}}, "container_stop"),
    ({"server": {"bind": ("0.0.0.0:80",)}}, "keepalive"),  # a sync worker keeps none
    ({"server": {"bind": ("127.0.0.1:80",), "threads": 4}}, "keepalive"),
    ({"server": {"bind": ("0.0.0.0:80",), "threads": 4, "keepalive": 75}}, "keepalive"),
    ({"server": {"bind": ("0.0.0.0:80",), "threads": 4, "keepalive": 0}}, "keepalive"),
    ({"server": {"timeout": 26}}, "worker_timeout"),
    ({"server": {"timeout": 0}}, "worker_timeout"),
    ({"server": {"timeout": 10, "threads": 4}}, "worker_timeout"),
    ({"LLM_MAX_WORKERS": "50", "server": {"threads": 50}}, "one_at_a_time"),
    ({"LLM_MAX_WORKERS": "50", "server": {"threads": 50}}, "threads_over_workers"),
    ({"LLM_BATCH_LIMIT": "126", "is_webapp": False}, "large_batch"),
    ({"DEEPSEEK_BASE_URL": "https://other.example.org", "DEEPSEEK_MODEL": "x"}, "unknown_model"),
    ({"DEEPSEEK_BASE_URL": "https://other.example.org", "DEEPSEEK_TRANSPORT": "0"}, "retired_model"),
    ({"DEEPSEEK_MODEL": "deepseek-chat"}, "thinking_model"),
    ({"LLM_MAX_WORKERS": "50", "USE_ASYNC_DEEPSEEK": "0"}, "one_at_a_time"),
    ({"LLM_MAX_WORKERS": "1000"}, "account_limit"),
    (
        {"LLM_MAX_WORKERS": "1000", "server": {"workers": 9}, "LLM_ACCOUNT_LIMIT": "500", **QUEUE},
        "account_limit",
    ),
    (
        {"LLM_MAX_WORKERS": "1000", "server": {"workers": 9}, "DEEPSEEK_BASE_URL": "https://x.org"},
        "account_limit",
    ),
    ({"DEEPSEEK_BASE_URL": LOCAL}, "key_in_clear"),
    ({"DEEPSEEK_BASE_URL": LOCAL, "HTTP_PROXY": "http://p:1", "NO_PROXY": "127.0.0.1"}, "loopback_proxy"),
    ({"DEEPSEEK_BASE_URL": LOCAL, "HTTP_PROXY": "http://p:1", "NO_PROXY": "x,127.0.0.0/8"}, "loopback_proxy"),
    ({"DEEPSEEK_BASE_URL": LOCAL, "HTTP_PROXY": "http://p:1", "http_proxy": ""}, "loopback_proxy"),
    ({"HTTPS_PROXY": "http://p:1"}, "loopback_proxy"),
    ({"LLM_USER_PATH": "of another program"}, "unknown_variable"),
    ({"WEB_API_TOKEN_OLD": "x", "WEB_API_TOKEN": TOKEN}, "unknown_variable"),
]
# What other programs call their settings, in an environment or a .env that is also ours.
SOMEBODY_ELSES = [
    *("WEB_ROOT", "WEB_PORT", "LLM_PROVIDER", "LLM_MODEL", "LLM_API_KEY", "LLM_MAX_TOKENS", "LLM_TIMEOUT"),
    *("DEEPSEEK_API_BASE", "DEEPSEEK_TEMPERATURE", "HOSTNAME", "DATABASE_URL", "WEB_CONCURRENCY_MAX"),
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
    monkeypatch.setattr(looked_at, "_OF_CONTAINERS", ())  # the tests may run in one
    monkeypatch.setattr(looked_at, "_CGROUPS", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def situation_for(monkeypatch):
    """The situation of our application with these variables in the process environment, a key, and a server."""

    def find(hosts=1, server=(), is_webapp=True, is_container=False, **env):
        for name, value in {"DEEPSEEK_API_KEY": KEY, **env}.items():
            monkeypatch.setenv(name, value)
        (situation,) = read(hosts)
        told = None if server is None else Server(**dict(server))
        return replace(situation, server=told, is_webapp=is_webapp, is_container=is_container)

    return find


@pytest.fixture
def findings_for(situation_for):
    """The findings in such a situation."""
    return lambda *hosts, **options: examine(situation_for(*hosts, **options))


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


def test_env_example(findings_for):
    """A copy of .env.example brings what the defaults bring."""
    write_env((ROOT / ".env.example").read_text(encoding="utf-8").replace("# DEEP", "DEEP"))
    assert codes(findings_for(DEEPSEEK_API_KEY="")) == {("no_key", "hint")}


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


def test_each_text_has_a_case():
    """No code of the table is without a test here, and none of the texts begs for a value that no check gives."""
    here = "".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_doctor*.py"))
    assert [code for code in TEXTS if f'"{code.partition("/")[0]}"' not in here] == []


@pytest.mark.parametrize("where", ["environment", "file"])
@pytest.mark.parametrize("name", SOMEBODY_ELSES)
def test_setting_of_somebody_else(findings_for, where, name):
    """A name that only begins like ours is another program's: nothing is said of it."""
    if where == "file":
        write_env(f"{name}=x")
        assert findings_for() == []
    else:
        assert findings_for(**{name: "x"}) == []


def test_the_worst_comes_first(findings_for):
    """Errors come before warnings, warnings before hints."""
    found = findings_for(LLM_MAX_WORKERS="6", DEEPSEEK_TRANSPORT="0", LLM_QUEUE_LIMITS="9")
    assert [each.level for each in found] == ["error", "warning", "hint", "hint"]


def test_every_wrong_setting_is_named_once(findings_for):
    """All settings that cannot be read are named, each once, by name and value."""
    found = findings_for(LLM_MAX_WORKERS="five", LLM_DEADLINE_S="soon", LOG_FORMAT="xml")
    texts = [each.what.partition(":")[0] for each in found if each.code == "unreadable_setting"]
    assert sorted(texts) == ["LLM_DEADLINE_S='soon'", "LLM_MAX_WORKERS='five'", "LOG_FORMAT='xml'"]


def test_hosts_multiply(findings_for):
    """126 hosts of 2 x 10 calls are above 2500, 125 are not."""
    assert findings_for(125, LLM_MAX_WORKERS="10", server={"threads": 10}) == []
    [finding] = findings_for(126, LLM_MAX_WORKERS="10", server={"threads": 10})
    assert finding.code == "account_limit"
    assert "126 (hosts) x 2 (gunicorn workers) x 10 (LLM_MAX_WORKERS) = 2520" in finding.what
    assert "to 9," in finding.remedy


def test_too_few_open_files(situation_for):
    """A limit below a connection per call and what a process has beside is a warning."""
    situation = situation_for()
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


def test_no_secret_in_the_repr(situation_for):
    """The situation's repr does not show the key, nor the environment."""
    assert KEY not in repr(situation_for())


def test_no_secret_is_shown(findings_for, capsys):
    """Key and token are in no output, wherever they were put, by mistake too."""
    write_env("DEEPSEEK_API_KEY=sk-OTHER-0123456789", f"WEB_API_TOKEN={KEY}", f"LLM_{KEY}=1", mode=0o644)
    findings = findings_for(LLM_MAX_WORKERS=KEY, DEEPSEEK_MODEL=KEY, LOG_FORMAT=TOKEN, WEB_API_TOKEN=TOKEN)
    assert {"shadowed", "open_env_file", "unreadable_setting"} <= {finding.code for finding in findings}
    outputs = []
    for as_json in (False, True):
        assert main(as_json=as_json) == 1
        outputs += capsys.readouterr()
    for secret in (KEY, "sk-OTHER-0123456789", TOKEN):
        assert [output for output in outputs if secret.lower() in output.lower()] == []


@pytest.mark.parametrize(
    ("env", "code"),
    [({}, 0), ({"DEEPSEEK_VERBOSE": "1"}, 0), ({"LLM_MAX_WORKER": "9"}, 1), ({"LLM_MAX_WORKERS": "x"}, 1)],
    ids=["nothing", "hint", "warning", "error"],
)
def test_exit_code(findings_for, capsys, env, code):
    """0 means nothing worse than a hint, 1 an error or a warning; the text has each finding, the JSON its fields."""
    findings = findings_for(server=None, **env)
    assert main() == code
    text = capsys.readouterr().out
    assert all(finding.what in text and finding.remedy in text for finding in findings)
    assert text.startswith(f"{findings[0].level}: ")
    assert main(as_json=True) == code
    assert json.loads(capsys.readouterr().out) == [asdict(finding) for finding in findings]


@pytest.fixture
def clone():
    """The current directory holds our own application."""
    for name in ("webapp", "deepseek_client"):
        Path(name).symlink_to(ROOT / name)


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({"WEB_API_TOKEN": TOKEN}, ""),
        ({"PORT": "http"}, "unreadable_setting"),
        ({"GUNICORN_CMD_ARGS": "--timeout x"}, "unreadable_setting"),
        ({"GUNICORN_CMD_ARGS": "--timeout '30"}, "unreadable_setting"),
        ({"HOST": "0.0.0.0"}, "public_without_token"),
        ({"GUNICORN_CMD_ARGS": "--bind unix:/run/x --bind :80"}, "public_without_token"),
        ({"GUNICORN_CMD_ARGS": "--timeout 25"}, "worker_timeout"),
        ({"LLM_DEADLINE_S": "300", "LLM_READ_TIMEOUT_S": "9"}, "proxy_timeout"),
        ({"WEB_THREADS": "6"}, "threads_over_workers"),
        ({"GUNICORN_CMD_ARGS": "--preload"}, "preload"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_our_own_server(monkeypatch, env, code):
    """In a clone it knows what gunicorn would be told, by our file and by GUNICORN_CMD_ARGS; nothing is changed."""
    for name, value in {"DEEPSEEK_API_KEY": KEY, **env}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ), sorted(os.listdir("."))
    (situation,) = read()
    assert [finding.code for finding in examine(situation)] == ([code] if code else [])
    assert (dict(os.environ), sorted(os.listdir("."))) == before
    assert os.listdir("tmp") == []


@pytest.mark.usefixtures("clone")
def test_env_file_that_is_a_fifo():
    """A .env that nobody writes to is named, and gunicorn's file, which would wait for it, is left alone."""
    os.mkfifo(".env")
    assert "unreadable_setting" in {finding.code for finding in examine(read()[0])}


def test_application_of_the_same_name():
    """A stranger's webapp/gunicorn.conf.py is not executed."""
    Path("webapp").mkdir()
    Path("webapp", "gunicorn.conf.py").write_text("raise SystemExit(1)")
    (situation,) = read()
    assert (situation.is_webapp, situation.server) == (False, None)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a server is found by /proc")
def test_running_server(tmp_path, monkeypatch):
    """Where a gunicorn runs, its own options and its own environment count, whoever said them and where."""
    Path("own.py").write_text("timeout = 20\nthreads = 8\nbind = '0.0.0.0:1'\n")
    env = {"GUNICORN_CMD_ARGS": "--graceful-timeout 10", "DEEPSEEK_API_KEY": KEY, "LLM_MAX_WORKERS": "7"}
    server = Gunicorn(tmp_path, "-c", "own.py", "-k", "gthread", **env)
    monkeypatch.setenv("LLM_MAX_WORKERS", "nonsense of this shell")
    try:
        server.wait_until_up()
        (situation,) = read()
    finally:
        server.end()
    told = situation.server
    assert (told.timeout, told.graceful_timeout, told.threads, told.worker_class) == (20, 10, 8, "gthread")
    assert situation.masters == {server.pid}
    assert codes(examine(situation)) == {("graceful_timeout", "warning"), ("threads_over_workers", "hint")}


def test_flask_and_requests_are_not_loaded():
    """The doctor loads neither the web framework nor the HTTP client."""
    code = "import sys, deepseek_client.ops.doctor; print({'flask', 'requests', 'urllib3', 'webapp'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=6 * GIVE_UP_S,
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_key_of_another_application(findings_for):
    """An application of somebody else's is told what a blank key means for it, and nothing of bin/serve."""
    (finding,) = findings_for(DEEPSEEK_API_KEY="", is_webapp=False)
    assert finding.code == "no_key"
    assert "a client of your own does not read it" in finding.why
    assert "bin/serve" not in "".join(asdict(finding).values())


@pytest.mark.parametrize(
    ("marks", "cgroups", "expected"),
    [
        (("/nowhere", "/"), None, True),
        (("/nowhere",), "0::/kubepods.slice/pod1\n", True),
        (("/nowhere",), "12:cpu:/docker/0a1b\n", True),
        (("/nowhere",), "0::/init.scope\n", False),
        (("/nowhere",), None, False),
    ],
    ids=["mark", "kubernetes", "docker", "machine", "nothing_to_read"],
)
def test_container(monkeypatch, tmp_path, marks, cgroups, expected):
    """A container is known by Docker's or Podman's mark, or by the group of its first process."""
    file = tmp_path / "cgroup"
    if cgroups is not None:
        file.write_text(cgroups)
    monkeypatch.setattr(looked_at, "_OF_CONTAINERS", marks)
    monkeypatch.setattr(looked_at, "_CGROUPS", file)
    (situation,) = read()
    assert situation.is_container is expected
