import os
import socket
from pathlib import Path

import pytest
from support.blocking import in_child

from deepseek_client import ConfigError
from deepseek_client.settings_file import read_env_file

NOBODY = 65534


@pytest.fixture(autouse=True)
def deployment(tmp_path, monkeypatch):
    """The current directory is an empty one."""
    monkeypatch.chdir(tmp_path)


def test_no_file():
    """A deployment without a `.env` has no settings from it."""
    assert read_env_file() == {}


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ("A=1\nB='two words' # why\n", {"A": "1", "B": "two words"}),
        ("WEB_API_TOKEN=pre${HOME}post\n", {"WEB_API_TOKEN": "pre${HOME}post"}),
        ('WEB_API_TOKEN="pre$HOME${x:-y}"\n', {"WEB_API_TOKEN": "pre$HOME${x:-y}"}),
        ("A=1\nB\nC=\n", {"A": "1", "C": ""}),
        ("\ufeffA=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
    ],
    ids=["plain", "literal", "literal_in_quotes", "blank", "windows"],
)
def test_values(content, values):
    """Values are taken literally, whatever `$` and braces are in them."""
    Path(".env").write_bytes(content.encode())
    assert read_env_file() == values


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkdir, "it is not a file"),
        (os.mkfifo, "it is not a file"),
        (make_socket, "No such device or address"),
        (lambda path: os.symlink("nowhere", path), "it is a link to a file that does not exist"),
        (lambda path: Path(path).write_bytes(b"A=\xff"), "it is not UTF-8"),
    ],
    ids=["directory", "fifo", "socket", "dangling_link", "bytes"],
)
def test_unreadable(make, why):
    """What is there and cannot be read is refused at once in one sentence; the defaults would be without the token."""
    make(".env")
    with pytest.raises(ConfigError) as refused:
        read_env_file()
    assert str(refused.value) == f".env cannot be read: {why}"


def test_without_permission():
    """A file that this user may not read is refused."""
    file = os.path.abspath(".env")
    Path(file).touch(mode=0)

    def read():
        os.chdir("/")
        if os.getuid() == 0:  # who reads everything
            os.setuid(NOBODY)
        with pytest.raises(ConfigError, match=r"cannot be read: Permission denied"):
            read_env_file(file)

    in_child(read)


@pytest.mark.parametrize(
    "line",
    ['WEB_API_TOKEN="secret', "WEB_API_TOKEN='se'cret'", "WEB_API_TOKEN: secret", "set WEB_API_TOKEN=secret"],
    ids=["open_quote", "quotes_inside", "colon", "set"],
)
def test_token_that_cannot_be_read(line):
    """A line that should set the token and is no assignment is refused without its text: nobody serves without it."""
    Path(".env").write_text(f"A=1\n{line}\nB=2\n")
    with pytest.raises(ConfigError) as raised:
        read_env_file()
    assert str(raised.value) == ".env cannot be read: line 2 names WEB_API_TOKEN and is no assignment"


@pytest.mark.parametrize(
    "more", ["# the WEB_API_TOKEN is set elsewhere", "no assignment", "WEB_API_TOKEN: old\nWEB_API_TOKEN=new"]
)
def test_other_lines_that_cannot_be_read(more):
    """Another line that is no assignment is skipped, as is one before the assignment that counts."""
    Path(".env").write_text(f"A=1\n{more}\n")
    assert read_env_file()["A"] == "1"
