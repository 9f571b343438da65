import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from dotenv import dotenv_values

from deepseek_client.ops.env_file import VARIABLE, EnvFile, with_value
from deepseek_client.ops.refusal import Refusal

# V stands for the variable, and 0 for the value: | is where the new value comes, between what stays.
EDITS = {
    "plain": ("A=1\nV=1\nB=2\n", "A=1\nV=|\nB=2\n"),
    "export": ("export V=1\n", "export V=|\n"),
    "single_quotes": ("V='1'\n", "V='|'\n"),
    "double_quotes": ('V="yes"\n', 'V="|"\n'),
    "quoted_name": ("'V'=1\n", "'V'=|\n"),
    "blanks": ("  V = 1  \n", "  V = |  \n"),
    "blank_lines": ("A=1\n\n\nV=1\n\n", "A=1\n\n\nV=|\n\n"),
    "comment_behind": ("V=1  # why\n", "V=|  # why\n"),
    "comment_behind_quotes": ("V='1' # 'why'\n", "V='|' # 'why'\n"),
    "empty": ("V=\nB=2\n", "V=|\nB=2\n"),
    "empty_with_comment": ("V= # why\n", "V=| # why\n"),
    "hash_is_the_value": ("V=#1\n", "V=|\n"),
    "no_equals_sign": ("V\nB=2\n", "V=|\nB=2\n"),
    "no_equals_sign_but_comment": ("V # why\n", "V=| # why\n"),
    "no_equals_sign_but_comment_at_once": ("V#why\n", "V=| #why\n"),
    "comment_at_once_behind_quotes": ("V='1'#why\n", "V='|'#why\n"),
    "reference": ("V=${MODE:-1}\n", "V=|\n"),
    "twice": ("V=1\nA=1\nV=1\n", "V=1\nA=1\nV=|\n"),
    "no_last_newline": ("V=1", "V=|"),
    "crlf": ("A=1\r\nV=1 # why\r\nB=2\r\n", "A=1\r\nV=| # why\r\nB=2\r\n"),
    "byte_order_mark": ("\ufeff# ours\nV=1\n", "\ufeff# ours\nV=|\n"),
    "chinese": ("# 开关\nV=1 # 原因\n", "# 开关\nV=| # 原因\n"),
    "odd_lines": ("!? 1\nA='1\nV=1\n", "!? 1\nA='1\nV=|\n"),
    "absent": ("A=1\n", "A=1\nV=|\n"),
    "absent_from_nothing": ("", "V=|\n"),
    "absent_and_no_last_newline": ("A=1", "A=1\nV=|\n"),
    "absent_crlf": ("A=1\r\n", "A=1\r\nV=|\r\n"),
    "commented_out": ("# V=1\n", "# V=1\nV=|\n"),
    "longer_name": ("V_TOO=1\n", "V_TOO=1\nV=|\n"),
    "in_a_long_value": ("A='x\nV=1\n'\n", "A='x\nV=1\n'\nV=|\n"),
}


@pytest.fixture(autouse=True)
def deployment(tmp_path, monkeypatch):
    """The current directory is an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def env_path(deployment):
    """A .env that says 1."""
    path = deployment / ".env"
    path.write_text("# ours\nUSE_ASYNC_DEEPSEEK=1\n")
    return path


@pytest.mark.parametrize(("before", "after"), EDITS.values(), ids=EDITS)
def test_value_changes(before, after):
    """Only the value changes, python-dotenv reads the new one, and a second edit makes the same text."""
    text = before.replace("V", VARIABLE)
    edited = with_value(text, "0")
    assert edited == after.replace("V", VARIABLE).replace("|", "0")
    assert dotenv_values(stream=io.StringIO(edited))[VARIABLE] == "0"
    assert with_value(edited, "0") == edited


def write(value="0"):
    """Writes the value into the current directory's .env, as owner of what is new."""
    env_file = EnvFile()
    env_file.write(value, (os.getuid(), os.getgid()))
    return env_file


def names():
    """What is in the current directory."""
    return sorted(os.listdir())


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o440])
def test_write(env_path, mode):
    """The new file and the backup, which has the old content, have the old one's permissions; nothing else is left."""
    old = env_path.read_bytes()
    env_path.chmod(mode)
    env_file = write()
    assert (env_path.read_text(), env_file.backup.read_bytes()) == ("# ours\nUSE_ASYNC_DEEPSEEK=0\n", old)
    assert [path.stat().st_mode & 0o777 for path in (env_path, env_file.backup)] == [mode, mode]
    assert names() == [".env", ".env.bak"]
    assert env_file.values == {VARIABLE: "0"}


def test_write_is_a_new_file(env_path):
    """A reader that has the old file open goes on reading the old one, to its end."""
    with env_path.open() as reader:
        write()
        assert reader.read() == "# ours\nUSE_ASYNC_DEEPSEEK=1\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_owner(env_path, deployment):
    """Owner and group stay, and a file that did not exist is given to who reads it."""
    os.chown(env_path, 1234, 5678)
    backup = write().backup
    assert [(path.stat().st_uid, path.stat().st_gid) for path in (env_path, backup)] == [(1234, 5678)] * 2
    env_path.unlink()
    EnvFile().write("0", (1234, 5678))
    assert (env_path.stat().st_uid, env_path.stat().st_gid) == (1234, 5678)


def test_link(deployment):
    """The target of a link is changed, and backed up beside itself; the link stays."""
    (deployment / "shared").mkdir()
    target = deployment / "shared" / "env"
    target.write_text("USE_ASYNC_DEEPSEEK=1\n")
    (deployment / ".env").symlink_to("shared/env")
    write()
    assert os.readlink(".env") == "shared/env"
    assert target.read_text() == "USE_ASYNC_DEEPSEEK=0\n"
    assert sorted(os.listdir("shared")) == ["env", "env.bak"]


def test_no_file():
    """Where there is no .env, one is made that only its owner reads."""
    write()
    assert names() == [".env"]
    assert Path(".env").read_text() == "USE_ASYNC_DEEPSEEK=0\n"
    assert Path(".env").stat().st_mode & 0o777 == 0o600


def test_nothing_to_write(env_path):
    """A value that is there already is not written."""
    inode = env_path.stat().st_ino
    write("1")
    assert (env_path.stat().st_ino, names()) == (inode, [".env"])


@pytest.mark.parametrize("function", ["chown", "fsync", "replace"])
def test_failed_write(env_path, monkeypatch, function):
    """When writing fails, .env is as it was, no temporary file is left, and the refusal says why."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    os.chown(env_path, os.getuid(), 1 if os.getuid() == 0 and function == "chown" else os.getgid())
    env_file = EnvFile()
    monkeypatch.setattr(os, function, fail)
    if function == "chown" and os.getuid() != 0:
        monkeypatch.setattr(os, "fstat", lambda _: SimpleNamespace(st_uid=-1, st_gid=-1))
    with pytest.raises(Refusal, match=r"cannot write .*\.env.*: No space left on device") as refused:
        env_file.write("0", (0, 0))
    assert refused.value.exit_code == 1
    assert (env_path.read_text(), names()) == ("# ours\nUSE_ASYNC_DEEPSEEK=1\n", [".env"])


def test_put_back(env_path):
    """put_back gives the file its old bytes, or removes one that was not there."""
    old = env_path.read_bytes()
    env_file = write()
    assert env_file.put_back() is True
    assert (env_path.read_bytes(), env_file.values) == (old, {VARIABLE: "1"})
    env_path.unlink()
    assert write().put_back() is True
    assert not env_path.exists()


def test_put_back_after_another_change(env_path):
    """put_back does not undo what someone else has written since."""
    env_file = write()
    env_path.write_text("USE_ASYNC_DEEPSEEK=0\nA=1\n")
    assert env_file.put_back() is False
    assert env_path.read_text() == "USE_ASYNC_DEEPSEEK=0\nA=1\n"


@pytest.mark.parametrize(
    "make", [Path.mkdir, lambda path: path.write_bytes(b"A=\xff\n")], ids=["folder", "bytes"]
)
def test_unreadable(deployment, make):
    """A .env that is not a file in UTF-8 is refused with 2."""
    make(deployment / ".env")
    with pytest.raises(Refusal) as refused:
        EnvFile()
    assert refused.value.exit_code == 2
