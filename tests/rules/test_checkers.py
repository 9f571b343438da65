"""The package in the eyes of the usual checkers, which are in the extra `check`."""

import shutil
import sys
from pathlib import Path

import pytest
from support.package import run

TYPED = Path(__file__).parent / "typed"
STRICT_PYRIGHT = """{
    "typeCheckingMode": "strict",
    "enableTypeIgnoreComments": false,
    "reportUnnecessaryTypeIgnoreComment": "error",
    "reportUnusedFunction": "none"
}"""


def test_twine_accepts_both(distributions, tmp_path):
    """The metadata is well-formed and the long description can be shown."""
    run([sys.executable, "-m", "twine", "check", "--strict", *distributions], tmp_path)


def test_check_wheel_contents_accepts_the_wheel(distributions, tmp_path):
    """No stray, doubled or empty file, and one package at the top."""
    run([sys.executable, "-m", "check_wheel_contents", distributions.wheel], tmp_path)


def test_pyroma_gives_at_least_nine(distributions, tmp_path):
    """The metadata answers what somebody who finds the package would ask."""
    run([sys.executable, "-m", "pyroma", "--min", "9", "--file", distributions.sdist], tmp_path)


@pytest.fixture
def strangers_code(tmp_path):
    """A folder with a stranger's code, which must have exactly the errors that its comments name."""
    return shutil.copytree(TYPED, tmp_path / "typed")


def test_mypy_sees_the_types_from_outside(installed_python, strangers_code):
    """For mypy, the installed package is typed: right use passes in strict mode, wrong use is an error."""
    run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed_python, "."],
        strangers_code,
    )


def test_pyright_sees_the_types_from_outside(installed_python, strangers_code):
    """For pyright, the same."""
    (strangers_code / "pyrightconfig.json").write_text(STRICT_PYRIGHT)
    run([sys.executable, "-m", "basedpyright", "--pythonpath", installed_python, "."], strangers_code)
