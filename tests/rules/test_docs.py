"""What the documents and .env.example say of the settings, held against the code."""

import io
import re
from collections.abc import Mapping

import dotenv
import pytest
from support.documents import CHINESE, DEPLOYMENT, LIBRARY, README, ROOT, blocks, codes_in, tables

from deepseek_client import ConfigError, DeepSeekClient, Settings

ENV_EXAMPLE = ROOT / ".env.example"

# Read by the legacy client, by the testimonies and by gunicorn's settings; `Settings` does not know them.
READ_ELSEWHERE = {
    "DEEPSEEK_RUN_DIR": "",
    "DEEPSEEK_VERBOSE": "0",
    "HOST": "127.0.0.1",
    "PORT": "5000",
    "CONSOLE_PORT": "5001",
    "WEB_CONCURRENCY": "2",
    "WEB_THREADS": "1",
}
PROBES = (
    "1",
    "0",
    "http://probe",
    "7",
    "json",
    "redis://probe",
    "probe:7",
    "loop",
)  # one of them is a legal value of each variable and not its default
NEEDED = {"LLM_ACCOUNT_LIMIT": {"CELERY_BROKER_URL": "redis://probe"}}  # beside the variable itself


class Recorder(Mapping):
    """An empty environment that remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __getitem__(self, name):
        self.asked.append(name)
        raise KeyError(name)

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0


def variables_read():
    """The variables that Settings asks for."""
    environment = Recorder()
    Settings.from_env(environment)
    return list(dict.fromkeys(environment.asked))


def default_of(variable):
    """The default of the setting that changes with the variable, as one writes it in an environment."""
    for probe in PROBES:
        try:
            changed = vars(Settings.from_env({variable: probe, **NEEDED.get(variable, {})}))
        except ConfigError:
            continue
        for field, default in vars(Settings()).items():
            if changed[field] != default:
                return (
                    f"{default:g}"
                    if isinstance(default, float)
                    else str({True: 1, None: ""}.get(default, default))
                )
    raise AssertionError(f"no probe changes what {variable} sets: add one that does to PROBES")


def documented_defaults():
    """What the documents must say: variable, default as text."""
    return {**{variable: default_of(variable) for variable in variables_read()}, **READ_ELSEWHERE}


def settings_table():
    """The rows of both settings tables: variable, default, meaning, document."""
    return [
        (codes_in(name)[0], default.strip("`"), meaning, document)
        for document in (LIBRARY, DEPLOYMENT)
        for name, default, meaning in tables(document)["variable"]
    ]


def env_example():
    """The assignments of .env.example, in order: name, value."""
    lines = ENV_EXAMPLE.read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"(?:# ?)?([A-Z][A-Z0-9_]*)=(.*)", line) for line in lines]
    return [(match[1], match[2].strip()) for match in found if match]


def test_legacy_client_knows_the_verbose_switch(monkeypatch):
    """DEEPSEEK_VERBOSE is read by the legacy client and not by Settings, so this file names it itself."""
    monkeypatch.delenv("DEEPSEEK_VERBOSE", raising=False)
    assert "DEEPSEEK_VERBOSE" not in variables_read()
    assert "DEEPSEEK_VERBOSE" in DeepSeekClient._call_openai.__code__.co_consts


def test_documents_name_each_setting_once():
    """The two tables together have a row for each variable that is read, and for no other."""
    assert sorted(name for name, *_ in settings_table()) == sorted(documented_defaults())


def test_documents_have_the_right_defaults():
    """The tables' defaults are the code's; an empty cell is an empty default."""
    assert {name: default for name, default, *_ in settings_table()} == documented_defaults()


def test_documents_say_what_each_setting_means():
    """No row without a meaning."""
    assert [name for name, _, meaning, _ in settings_table() if not meaning] == []


def test_env_example_names_each_setting_once():
    """.env.example has a line for each variable that is read, and for no other."""
    assert sorted(name for name, _ in env_example()) == sorted(documented_defaults())


def test_env_example_shows_the_defaults():
    """Each line, commented out or not, shows the default: taking the # away changes nothing."""
    assert dict(env_example()) == documented_defaults()


def test_env_example_explains_each_setting():
    """Before each variable stands a comment of one line."""
    lines = ENV_EXAMPLE.read_text(encoding="utf-8").splitlines()
    names = {name for name, _ in env_example()}
    for before, line in zip(["", *lines], lines, strict=False):
        if line.removeprefix("#").strip().partition("=")[0] in names:
            assert re.match(r"# \S.* ", before), f"nothing explains {line!r}"


def test_env_example_copied_changes_nothing():
    """`cp .env.example .env` gives the defaults, as python-dotenv reads it."""
    assert Settings.from_env(dotenv.dotenv_values(ENV_EXAMPLE)) == Settings()


@pytest.mark.parametrize("name", ["LLM_MAX_WORKERS", "DEEPSEEK_API_KEY", "USE_ASYNC_DEEPSEEK"])
def test_settings_are_asked_for_by_name(name):
    """The recording finds the variables: these are among them."""
    assert name in variables_read()


def test_settings_in_ini_blocks_are_accepted():
    """What the documents write into `.env` changes a setting."""
    for document in (README, CHINESE):
        for block in blocks(document, "ini"):
            values = dotenv.dotenv_values(stream=io.StringIO(block.text))
            assert Settings.from_env(values) != Settings()
