"""What the doctor says of settings, what it prints, and what it keeps to itself."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.diagnoses import KEY, TOKEN, codes, write_env
from support.patience import GIVE_UP_S

from deepseek_client.ops.doctor import examine, main
from deepseek_client.ops.doctor.texts import TEXTS

ROOT = Path(__file__).parents[2]
QUEUE = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}  # nobody is there
LOCAL = "http://127.0.0.1:9"

pytestmark = pytest.mark.usefixtures("alone")

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
