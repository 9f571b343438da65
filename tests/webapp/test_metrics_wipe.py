import runpy
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "webapp" / "gunicorn.conf.py"


@pytest.mark.parametrize("takes_over", [False, True], ids=["start", "takes over"])
def test_a_start_wipes_what_an_earlier_server_counted(monkeypatch, tmp_path, takes_over):
    """In a given directory a start removes our counts and nothing of the application's; a takeover (USR2) goes on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    if takes_over:
        monkeypatch.setenv("GUNICORN_PID", "1")
    (tmp_path / "deepseek").mkdir()
    files = [
        tmp_path / "counter_1.db",
        tmp_path / "deepseek" / "0.lock",
        tmp_path / "deepseek" / "counter_0.db",
    ]
    for file in files:
        file.touch()
    runpy.run_path(str(CONFIG))["on_starting"](None)
    assert [file.exists() for file in files] == [True, True, takes_over]


@pytest.mark.parametrize("given", ["", "/dev/null/nowhere"])
def test_a_start_needs_no_directory(monkeypatch, tmp_path, given):
    """A server starts without a directory for metrics, and with one that cannot be made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", given)
    runpy.run_path(str(CONFIG))["on_starting"](None)
