import os

import pytest

from .arguments import Options, parse


def test_defaults():
    """Two minutes, and no file."""
    assert parse([]) == Options(2.0, 1, "")


def test_arguments(tmp_path, monkeypatch):
    """Fractions of minutes are taken; the file's path is absolute, for the command runs elsewhere."""
    monkeypatch.chdir(tmp_path)
    found = parse(["--minutes", "0.25", "--seed", "7", "--json", "out.json"])
    assert found == Options(0.25, 7, str(tmp_path / "out.json"))


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--minutes", text] for text in ("0", "-1", "0.01", "1441", "nan", "inf", "two", "")),
        *(["--seed", text] for text in ("-1", "1.5", "x")),
        ["--hours", "1"],
        ["1"],
    ],
    ids=" ".join,
)
def test_wrong_arguments(arguments, capsys):
    """They end with 2 and one line that names them."""
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    complaint = capsys.readouterr().err
    assert (end.value.code, complaint.count("\n")) == (2, 1)
    assert complaint.startswith("soak: ")
    assert arguments[-1] in complaint


@pytest.mark.parametrize("path", ["nowhere/out.json", "."], ids=["no_folder", "a_folder"])
def test_file_that_cannot_be_written(tmp_path, monkeypatch, capsys, path):
    """It is refused before the run, with 1."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        parse(["--json", path])
    assert end.value.code == 1
    assert capsys.readouterr().err == f"soak: cannot write {os.path.abspath(path)}\n"


def test_help(capsys):
    """--help ends with 0 and names each argument and exit code."""
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert all(word in text for word in ("--minutes", "--seed", "--json", "Exit codes: 0"))
