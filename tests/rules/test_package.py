"""The sdist and the wheel, as a stranger gets them."""

import re
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from support.package import run

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "deepseek_client"
MONITORING = ROOT / "webapp" / "monitoring"
CONSOLE = ROOT / "webapp" / "console"
OWN_TESTS = ("tests/test_settings.py", "tests/rules/test_exports.py")
OF_EGG_INFO = re.compile(r"PKG-INFO|[\w.-]+\.egg-info/.*")


def names_in_wheel(distributions):
    """The files of the wheel, without what describes it."""
    names = zipfile.ZipFile(distributions.wheel).namelist()
    return {name for name in names if ".dist-info/" not in name}


def names_in_sdist(distributions):
    """The files of the sdist, relative to its one folder, without what describes it."""
    with tarfile.open(distributions.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    return {name for name in names if not OF_EGG_INFO.fullmatch(name)}


@pytest.fixture
def files_of_the_tree():
    """What git tracks or would track."""
    if not (ROOT / ".git").exists():
        pytest.skip("only git knows what belongs to the tree, and this is an unpacked sdist")
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT).split("\0")
    return {name for name in listed if (ROOT / name).is_file()}


@pytest.fixture(scope="session")
def metadata(distributions):
    """The wheel's own description."""
    with zipfile.ZipFile(distributions.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


def test_wheel_holds_the_library_and_nothing_else(distributions):
    """All modules of deepseek_client, its py.typed, the monitoring files and the console; no webapp and no tests."""
    library = [file for file in LIBRARY.rglob("*") if file.suffix == ".py" or file.name == "py.typed"]
    expected = {str(file.relative_to(ROOT)) for file in library}
    expected |= {f"deepseek_client/monitoring/{file.name}" for file in MONITORING.iterdir()}
    console = [file for file in CONSOLE.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    expected |= {f"deepseek_client/console/{file.relative_to(CONSOLE)}" for file in console}
    assert names_in_wheel(distributions) == expected


def test_sdist_holds_the_whole_tree(distributions, files_of_the_tree):
    """Each file of the tree is in the sdist, and nothing that only lies around."""
    assert names_in_sdist(distributions) == files_of_the_tree


def test_sdist_runs_its_own_tests(distributions, tmp_path):
    """Tests that lie in the sdist pass on the library that lies in the sdist."""
    with tarfile.open(distributions.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *OWN_TESTS]
    assert " passed" in run(command, folder)


def test_metadata_names_every_python(metadata):
    """The classifiers go without a gap from python_requires to the newest Python that the suite runs on."""
    minors = [
        int(minor)
        for minor in re.findall(r"Python :: 3\.(\d+)$", "\n".join(metadata.get_all("Classifier")), re.M)
    ]
    assert minors == list(range(10, 16))
    assert metadata["Requires-Python"] == ">=3.10"


def test_metadata_gives_the_license(metadata, distributions):
    """The wheel says MIT in the current form, and carries the text."""
    assert metadata["License-Expression"] == "MIT"
    with zipfile.ZipFile(distributions.wheel) as archive:
        (text,) = (archive.read(name) for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
    assert text.startswith(b"MIT License")


def test_monitoring_files_are_found_in_the_package(installed_python, tmp_path):
    """A deployment that has only the wheel finds the alerts and the dashboard by importlib.resources."""
    code = "import importlib.resources as r; print(*(f.name for f in r.files('deepseek_client.monitoring').iterdir()))"
    found = set(run([installed_python, "-c", code], tmp_path).split())
    assert found >= {file.name for file in MONITORING.iterdir()}


def test_import_alone_loads_no_other_package(installed_python, tmp_path):
    """`import deepseek_client` loads nothing but the standard library, so that it costs next to nothing."""
    code = "import sys; before = {*sys.modules}; import deepseek_client; print(*{*sys.modules} - before)"
    loaded = {name.partition(".")[0] for name in run([installed_python, "-c", code], tmp_path).split()}
    assert loaded - sys.stdlib_module_names == {"deepseek_client"}


def test_console_is_served_from_the_package(installed_python, tmp_path):
    """A deployment that has only the wheel has the console, with its page and what that loads."""
    code = (
        "from deepseek_client.console import create_console as make; client = make().test_client(); "
        "print(*(client.get(path).status_code for path in ('/', '/static/console.js', '/static/uplot/LICENSE')))"
    )
    assert run([installed_python, "-c", code], tmp_path).split() == ["200"] * 3
    help_text = run([installed_python, "-m", "deepseek_client", "console", "--help"], tmp_path)
    assert help_text.startswith("usage: deepseek-client console")
