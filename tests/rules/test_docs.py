import ast
import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

import dotenv
import pytest

from deepseek_client import ConfigError, DeepSeekClient, Settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ENV_EXAMPLE = ROOT / ".env.example"

# Read by the legacy client and by gunicorn's settings; `Settings` does not know them.
READ_ELSEWHERE = {
    "DEEPSEEK_VERBOSE": "0",
    "HOST": "127.0.0.1",
    "PORT": "5000",
    "WEB_CONCURRENCY": "2",
    "WEB_THREADS": "1",
}
PROBES = (
    "1",
    "0",
    "http://probe",
    "7",
    "json",
)  # one of them is a legal value of each variable and not its default


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
            changed = vars(Settings.from_env({variable: probe}))
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
    """README's rows | `NAME` | default | meaning |, in order."""
    rows = re.findall(r"^\| *`([A-Z][A-Z0-9_]*)` *\|([^|\n]*)\|([^\n]*)\|[ \t]*$", readme(), re.MULTILINE)
    return [(name, default.strip().strip("`"), meaning.strip()) for name, default, meaning in rows]


def env_example():
    """The assignments of .env.example, in order: name, value."""
    lines = ENV_EXAMPLE.read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"(?:# ?)?([A-Z][A-Z0-9_]*)=(.*)", line) for line in lines]
    return [(match[1], match[2].strip()) for match in found if match]


def readme():
    """The README's text."""
    return README.read_text(encoding="utf-8")


def blocks(language):
    """README's fenced code blocks of a language, without a common indentation."""
    pattern = rf"^([ \t]*)```{language}[ \t]*\n(.*?)^\1```[ \t]*$"
    return [textwrap.dedent(body) for _, body in re.findall(pattern, readme(), re.MULTILINE | re.DOTALL)]


def commands():
    """The lines of README's sh blocks that call a command of ours."""
    lines = [line.strip().removeprefix("$ ") for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("bin/")]


def test_legacy_client_knows_the_verbose_switch(monkeypatch):
    """DEEPSEEK_VERBOSE is read by the legacy client and not by Settings, so this file names it itself."""
    monkeypatch.delenv("DEEPSEEK_VERBOSE", raising=False)
    assert "DEEPSEEK_VERBOSE" not in variables_read()
    assert "DEEPSEEK_VERBOSE" in DeepSeekClient._call_openai.__code__.co_consts


def test_readme_names_each_setting_once():
    """The table has a row for each variable that is read, and for no other."""
    assert sorted(name for name, *_ in settings_table()) == sorted(documented_defaults())


def test_readme_has_the_right_defaults():
    """The table's defaults are the code's; an empty cell is an empty default."""
    assert {name: default for name, default, _ in settings_table()} == documented_defaults()


def test_readme_says_what_each_setting_means():
    """No row without a meaning."""
    assert [name for name, _, meaning in settings_table() if not meaning] == []


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


def test_commands_of_the_readme_exist():
    """What the sh blocks call as bin/... is there and executable."""
    programs = {command.split()[0] for command in commands()}
    assert programs, "README shows no command"
    assert [program for program in sorted(programs) if not os.access(ROOT / program, os.X_OK)] == []


def test_python_of_the_readme_compiles():
    """Each python block is Python; `await` may stand at its top level, as in `python -m asyncio`."""
    assert blocks("python"), "README shows no Python"
    for block in blocks("python"):
        compile(block, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize("name", ["LLM_MAX_WORKERS", "DEEPSEEK_API_KEY", "USE_ASYNC_DEEPSEEK"])
def test_settings_are_asked_for_by_name(name):
    """The recording finds the variables: these are among them."""
    assert name in variables_read()
