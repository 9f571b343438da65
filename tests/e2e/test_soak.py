import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOAK = str(ROOT / "bin" / "soak")
LONG_S = 60

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")


@pytest.fixture(scope="module", autouse=True)
def set_up():
    """The first set-up, which may take a minute, is not what these tests are about."""
    subprocess.run([ROOT / "bin" / "setup"], check=True)


def test_run(tmp_path):
    """A short run over the real application finds nothing, says so in a table and in a file, and ends with 0."""
    file = tmp_path / "soak.json"
    done = subprocess.run(
        [SOAK, "--minutes", "0.1", "--json", file], capture_output=True, text=True, timeout=LONG_S
    )
    content = json.loads(file.read_text())
    assert (done.returncode, [figure for figure in content["figures"] if not figure["is_fine"]]) == (0, [])
    assert "| threads | " in done.stdout
    assert done.stdout.count(" | ok |\n") == len(content["figures"])
    assert done.stderr.startswith("soak: 0:0")
    assert sum(content["outcomes"].values()) == content["rests"][-1]["sent"]


@pytest.mark.parametrize(
    ("number", "code", "last_line"),
    [
        pytest.param(signal.SIGINT, 1, "soak: interrupted", id="ctrl_c"),
        pytest.param(signal.SIGTERM, 1, "soak: interrupted", id="term"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, None, id="kill"),
    ],
)
def test_end_from_outside(tmp_path, eventually, number, code, last_line):
    """However it is ended under load, no process of it is left; unless it is killed, no file either, and it says so.

    The metrics of a server that has ended stay until the next server of the same user starts.
    """
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([SOAK, "--minutes", "1"], env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "threads" in process.stderr.readline()
            family = descendants(process.pid)
            assert len(family) == 3  # the sandbox, gunicorn's master, its worker
            process.send_signal(number)
            assert process.wait(LONG_S) == code
            eventually(lambda: not any(map(lives, family)))
        finally:
            process.kill()
        complaints = [line for line in process.stderr.read().splitlines() if " of " not in line]
    assert complaints == ([last_line] if last_line else [])
    left = [path.name for path in tmp_path.iterdir() if not path.name.startswith("deepseek-metrics-")]
    assert left == [] or number == signal.SIGKILL


def stat_of(pid):
    """The fields of a process after its name: state, parent; none when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def lives(pid):
    """Whether it is there, and more than a zombie that nobody has buried."""
    return stat_of(pid)[:1] not in ([], ["Z"])


def descendants(pid):
    """The pids of a process's children, and theirs."""
    everybody = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    children = [each for each in everybody if stat_of(each)[1:2] == [str(pid)]]
    return [*children, *(each for child in children for each in descendants(child))]
