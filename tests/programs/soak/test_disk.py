import os
import subprocess

import pytest

from .disk import Disk, running_disk


def test_disk_fills_and_empties(tmp_path):
    """A full disk holds nothing else and takes no byte more; an empty one does."""
    with running_disk(tmp_path) as disk:
        if not disk.is_small and "CI" not in os.environ:
            pytest.skip("cannot mount a file system")
        (disk.path / "run").mkdir()
        (disk.path / "run" / "testimony").write_text("x")
        disk.fill()
        assert [file.name for file in disk.path.rglob("*") if file.is_file()] == ["ballast"]
        with pytest.raises(OSError, match="No space left"):
            (disk.path / "more").write_bytes(b"x")
        disk.empty()
        (disk.path / "more").write_bytes(b"x" * 4096)
    assert not os.path.ismount(disk.path)


def test_without_the_right_to_mount(tmp_path, monkeypatch):
    """The run has a plain folder, and knows that it never fills."""
    refused = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: refused)
    with running_disk(tmp_path) as disk:
        assert not disk.is_small


def test_plain_folder_is_left_alone(tmp_path):
    """Nothing is removed, and nothing is written, where it would never end."""
    (tmp_path / "file").write_text("x")
    disk = Disk(tmp_path, is_small=False)
    disk.fill()
    disk.empty()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
