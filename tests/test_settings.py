from dataclasses import FrozenInstanceError, asdict

import pytest

from deepseek_client import ConfigError, Settings

# Design, section 4: variable, field, default, a value, and what the value becomes.
TABLE = [
    ("LLM_MAX_WORKERS", "max_workers", 5, "7", 7),
    ("LLM_QUEUE_LIMIT", "queue_limit", 100, "0", 0),
    ("LLM_DEADLINE_S", "deadline_s", 25.0, "0.5", 0.5),
    ("LLM_READ_TIMEOUT_S", "read_timeout_s", None, "0.5", 0.5),
    ("LLM_MAX_ATTEMPTS", "max_attempts", 3, "1", 1),
    ("LLM_BATCH_LIMIT", "batch_limit", 100, "3", 3),
    ("LLM_PROMPT_LIMIT", "prompt_limit", 20000, "9", 9),
    ("LLM_ENGINE", "engine", "threads", "LOOP", "loop"),
    ("USE_ASYNC_DEEPSEEK", "use_async", True, "0", False),
    ("DEEPSEEK_TRANSPORT", "transport", True, "0", False),
    ("DEEPSEEK_API_KEY", "api_key", "", "sk-k", "sk-k"),
    ("DEEPSEEK_BASE_URL", "base_url", "https://api.deepseek.com", "http://127.0.0.1:8765", ...),
    ("DEEPSEEK_MODEL", "model", "", "deepseek-v4-pro", ...),
    ("LOG_FORMAT", "log_format", "text", "JSON", "json"),
    ("WEB_API_TOKEN", "web_api_token", "", "s3cret", "s3cret"),
    ("CELERY_BROKER_URL", "celery_broker_url", "", "redis://:s3cret@queue:6380/2", ...),
    ("CELERY_RESULT_BACKEND", "celery_result_backend", "", "rediss://queue", ...),
    ("TASK_QUEUE_LIMIT", "task_queue_limit", 1000, "5", 5),
    ("TASK_RESULT_TTL_S", "task_result_ttl_s", 3600, "60", 60),
    ("WORKER_METRICS", "worker_metrics", "", "127.0.0.1:5002", ...),
]
VARIABLES = [name for name, *_ in TABLE]
DEFAULTS = {field: default for _, field, default, *_ in TABLE} | {"account_limit": 0}

WHOLE = {
    "LLM_MAX_WORKERS": (1, 1000),
    "LLM_QUEUE_LIMIT": (0, 100_000),
    "LLM_MAX_ATTEMPTS": (1, 100),
    "LLM_BATCH_LIMIT": (1, 10_000),
    "LLM_PROMPT_LIMIT": (1, 1_000_000),
    "TASK_QUEUE_LIMIT": (1, 1_000_000),
    "TASK_RESULT_TTL_S": (1, 2_592_000),
}
NOT_WHOLE = ["five", "5.0", "-1", "+5", "1_0", "0x5", "1e3", "5 5", "٥", "9999999999", "None"]
NOT_SECONDS = ["1e1", "1_0", "٥", "5.", "soon", "0", "-1", "nan", "inf", "3600.1", "25s", "1,5"]
NOT_A_SWITCH = ["2", "maybe", "-1", "enabled", "00"]
NOT_AN_ADDRESS = [
    "api.deepseek.com",
    "ftp://api.deepseek.com",
    "https://",
    "https:///v1",
    "http://host:port",
    "http://host:0",
    "http://host:65536",
    "http://[::1",
    "https://api.deepseek.com/?a=1",
    "https://api.deepseek.com/#a",
    "https://api deepseek.com",
]
NOT_A_KEY = {
    "blank-inside": "sk-se cret",
    "newline-inside": "sk-se\ncret",
    "tab-inside": "sk-se\tcret",
    "chinese": "sk-secret密",
    "control": "sk-secret\x7f",
}


def refusal(name, value):
    """What the error says about this value of a variable."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({name: value})
    return str(caught.value)


def test_defaults_are_the_documented_ones():
    """Nothing set gives the documented default of every setting."""
    assert asdict(Settings.from_env({})) == DEFAULTS


def test_defaults_hold_without_an_environment_too():
    """`Settings()` and `Settings.from_env({})` are the same."""
    assert Settings() == Settings.from_env({})


@pytest.mark.parametrize("blank", ["", "  ", "\t"], ids=["empty", "blanks", "tab"])
@pytest.mark.parametrize("name", VARIABLES)
def test_blank_means_the_default(name, blank):
    """A variable that is set to nothing, as `NAME=` in a .env file, is as good as unset."""
    assert Settings.from_env({name: blank}) == Settings()


@pytest.mark.parametrize(("name", "field", "default", "value", "becomes"), TABLE, ids=VARIABLES)
def test_variable_sets_its_field_and_no_other(name, field, default, value, becomes):
    """Each variable changes one setting; blanks around its value do not count."""
    expected = {**DEFAULTS, field: value if becomes is ... else becomes}
    assert asdict(Settings.from_env({name: f" {value} "})) == expected


def test_only_the_mapping_is_read(monkeypatch):
    """The process environment does not shine through, and foreign variables are ignored."""
    monkeypatch.setenv("LLM_MAX_WORKERS", "9")
    assert Settings.from_env({"PATH": "/bin", "LLM_UNKNOWN": "x"}) == Settings()


@pytest.mark.parametrize("name", WHOLE)
def test_limits_of_a_whole_number_are_allowed(name):
    """The lowest and the highest value belong to the range."""
    field = {row[0]: row[1] for row in TABLE}[name]
    low, high = WHOLE[name]
    assert getattr(Settings.from_env({name: str(low)}), field) == low
    assert getattr(Settings.from_env({name: str(high)}), field) == high


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_beyond_the_limits_is_refused(name):
    """One below and one above the range are refused with the range."""
    low, high = WHOLE[name]
    for value in (str(low - 1), str(high + 1)):
        assert refusal(name, value) == f"{name}={value!r}: need a whole number from {low} to {high}"


@pytest.mark.parametrize("value", NOT_WHOLE)
@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_whole_number_is_refused(name, value):
    """The message names the variable, its value and what is needed."""
    low, high = WHOLE[name]
    assert refusal(name, value) == f"{name}={value!r}: need a whole number from {low} to {high}"


def test_message_is_word_for_word_the_documented_one():
    """The example of the style page."""
    assert refusal("LLM_MAX_WORKERS", "five") == (
        "LLM_MAX_WORKERS='five': need a whole number from 1 to 1000"
    )


@pytest.mark.parametrize(("value", "deadline_s"), [("0.001", 0.001), ("3600", 3600.0), ("007", 7.0)])
def test_deadline_is_seconds(value, deadline_s):
    """Any positive number up to an hour, fractions too."""
    assert Settings.from_env({"LLM_DEADLINE_S": value}).deadline_s == deadline_s


@pytest.mark.parametrize("value", NOT_SECONDS)
def test_what_is_no_deadline_is_refused(value):
    """Zero, endless, more than an hour and words are refused."""
    assert refusal("LLM_DEADLINE_S", value) == (
        f"LLM_DEADLINE_S={value!r}: need seconds, more than 0 and at most 3600"
    )


@pytest.mark.parametrize(
    ("value", "on"),
    [
        *[(word, True) for word in ("1", "true", "YES", "On")],
        *[(word, False) for word in ("0", "False", "no", "OFF")],
    ],
)
@pytest.mark.parametrize(
    ("name", "field"), [("USE_ASYNC_DEEPSEEK", "use_async"), ("DEEPSEEK_TRANSPORT", "transport")]
)
def test_switch_is_on_or_off(name, field, value, on):
    """1 and 0, and the words that people write instead, in any case."""
    assert getattr(Settings.from_env({name: value}), field) is on


@pytest.mark.parametrize("value", NOT_A_SWITCH)
@pytest.mark.parametrize("name", ["USE_ASYNC_DEEPSEEK", "DEEPSEEK_TRANSPORT"])
def test_what_is_no_switch_is_refused(name, value):
    """Anything else is refused: a rollback must not depend on a guess."""
    assert refusal(name, value) == f"{name}={value!r}: need 1 or 0"


@pytest.mark.parametrize(
    ("value", "base_url"),
    [
        pytest.param("https://api.deepseek.com/", "https://api.deepseek.com", id="slash"),
        pytest.param("https://api.deepseek.com//", "https://api.deepseek.com", id="slashes"),
        pytest.param(" https://api.deepseek.com/v1/ ", "https://api.deepseek.com/v1", id="path-and-blanks"),
        pytest.param("http://[::1]:8765", "http://[::1]:8765", id="ipv6"),
        pytest.param("HTTPS://API.deepseek.com", "HTTPS://API.deepseek.com", id="case"),
    ],
)
def test_address_is_cleaned(value, base_url):
    """Blanks around and slashes behind the base URL go away, so that a path can follow it."""
    assert Settings.from_env({"DEEPSEEK_BASE_URL": value}).base_url == base_url


@pytest.mark.parametrize("value", NOT_AN_ADDRESS)
def test_what_is_no_address_is_refused(value):
    """No scheme, another scheme, no host, a bad port, a query or a blank is refused."""
    assert refusal("DEEPSEEK_BASE_URL", value) == (
        f"DEEPSEEK_BASE_URL={value!r}: need an http or https address such as https://api.deepseek.com"
    )


def test_line_end_around_the_key_does_not_count():
    """A key out of a file, with its line end, is the key."""
    assert Settings.from_env({"DEEPSEEK_API_KEY": "sk-secret\r\n"}).api_key == "sk-secret"


@pytest.mark.parametrize("value", NOT_A_KEY.values(), ids=NOT_A_KEY)
def test_key_that_no_header_can_carry_is_refused_unseen(value):
    """The refusal names the variable and what is needed, and shows nothing of the key."""
    assert refusal("DEEPSEEK_API_KEY", value) == (
        "DEEPSEEK_API_KEY (not shown): need printable ASCII without blanks"
    )


def test_key_is_not_in_the_repr():
    """Settings may be logged."""
    settings = Settings.from_env({"DEEPSEEK_API_KEY": "sk-secret"})
    assert "secret" not in f"{settings!r} {settings}"


def test_another_variable_s_error_does_not_show_the_key():
    """A key that is right stays out of the refusal of something else."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({"DEEPSEEK_API_KEY": "sk-secret", "LLM_MAX_WORKERS": "five"})
    assert "secret" not in f"{caught.value!r}"


def test_settings_are_frozen():
    """Nobody changes a setting after it was checked."""
    with pytest.raises(FrozenInstanceError):
        Settings().max_workers = 1


def test_address_with_a_password_is_refused_without_showing_it():
    """A base URL with a user name and password would put it into logs and reprs."""
    message = refusal("DEEPSEEK_BASE_URL", "https://me:secret@example.com")
    assert message == "DEEPSEEK_BASE_URL (not shown): need an address without user name and password"


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"])
@pytest.mark.parametrize(
    "value",
    [
        "valkey://:s3cret@queue",
        "amqp://guest:s3cret@queue",
        "queue:6379",
        "redis://",
        "redis://:s3cret@queue:0",
        "redis://:s3cret@queue/zero",
        "redis://:s3 cret@queue",
        "redis+socket://",
        "redis://[:s3cret",
    ],
)
def test_address_of_no_queue_is_refused_unseen(name, value):
    """Its password is not repeated; the forms that are known are."""
    said = refusal(name, value)
    assert said.startswith(f"{name} (not shown): need redis://")
    assert "s3" not in said


@pytest.mark.parametrize(
    "url", ["redis://q", "rediss://u:p@q:1/9", "redis+socket:///run/q.sock?virtual_host=1"]
)
def test_address_of_a_queue_is_taken_as_it_is(url):
    """TCP, TLS, or a unix socket; for both variables, or for one."""
    both = Settings.from_env({"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url})
    assert both.celery_broker_url == both.celery_result_backend == url


def test_results_lie_where_the_messages_do():
    """Another server is refused without showing it; another database number of the same one is not."""
    broker = {"CELERY_BROKER_URL": "redis://:s3cret@q:6379/0"}
    Settings.from_env({**broker, "CELERY_RESULT_BACKEND": "redis://:s3cret@q/1"})
    with pytest.raises(ConfigError, match=r"CELERY_RESULT_BACKEND \(not shown\)") as caught:
        Settings.from_env({**broker, "CELERY_RESULT_BACKEND": "redis://:s3cret@other/0"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("value", ["5002", ":5002", "host:", "host:0", "host:65536", "host:port"])
def test_address_of_metrics_needs_host_and_port(value):
    """Both, as gunicorn binds."""
    assert refusal("WORKER_METRICS", value).startswith(f"WORKER_METRICS={value!r}: need host:port")


@pytest.mark.parametrize("server", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"])
def test_account_limit_is_shared_through_the_queues_server(server):
    """LLM_ACCOUNT_LIMIT is a whole number; 0 is off, and needs no server."""
    url = "redis://:secret@127.0.0.1:6379/0"
    settings = Settings.from_env({"LLM_ACCOUNT_LIMIT": "100000", server: url})
    assert (settings.account_limit, settings.account_server_url) == (100_000, url)
    assert "secret" not in repr(settings)
    assert Settings.from_env({"LLM_ACCOUNT_LIMIT": "0"}) == Settings()
    assert refusal("LLM_ACCOUNT_LIMIT", "100001") == (
        "LLM_ACCOUNT_LIMIT='100001': need a whole number from 0 to 100000"
    )


def test_account_limit_without_a_server_is_refused():
    """A limit that nobody could share is refused by what it needs."""
    assert refusal("LLM_ACCOUNT_LIMIT", "10") == (
        "LLM_ACCOUNT_LIMIT=10: need the Redis or Valkey server that all hosts share, in CELERY_BROKER_URL"
    )
