import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import GIVE_UP_S

ROOT = Path(__file__).parents[2]
SERVE = str(ROOT / "bin" / "serve")

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")


@pytest.fixture(scope="module", autouse=True)
def set_up():
    """The first set-up, which may take a minute, is not what these tests are about."""
    subprocess.run([ROOT / "bin" / "setup"], check=True)


@pytest.fixture
def server(serving):
    """bin/serve as a new clone has it: without a key."""
    with serving([SERVE]) as server:
        yield server


def test_plain_gunicorn(server):
    """What serves is a plain gunicorn: its command line says so, and how it was started."""
    words = (Path("/proc") / str(server.pid) / "cmdline").read_text().split("\0")
    python, gunicorn, *arguments = words[:-1]
    assert Path(python).name.startswith("python")
    assert (Path(gunicorn).name, arguments) == (
        "gunicorn",
        ["-c", "webapp/gunicorn.conf.py", "webapp.wsgi:app"],
    )


def sandboxes_of(server):
    """The pids of its sandboxes."""
    return [pid for pid, line in server.processes().items() if "deepseek_client.sandbox" in line]


def test_serves_from_the_sandbox(server):
    """Without a key it serves from a sandbox of its own, and says so at its start and in its status."""
    chat = server.post("/api/llm/chat", {"prompt": "你好"})
    assert (chat.status_code, chat.json()) == (200, {"text": "沙盒已收到：「你好」", "mode": "async"})
    status = server.get("/api/llm/status").json()
    assert (status["upstream"], status["api_key_configured"]) == ("sandbox", True)
    assert server.get("/ready").status_code == 200
    assert len(sandboxes_of(server)) == 1
    output = server.output.read_text()
    assert "No DEEPSEEK_API_KEY: answers come from the local sandbox" in output
    assert f"Serving on {server.url}" in output


def test_ctrl_c(server, eventually):
    """Ctrl-C, an INT to the whole process group, ends it with 0, and the sandbox ends with it."""
    assert server.post("/api/llm/chat", {"prompt": "x"}).status_code == 200
    os.killpg(server.pid, signal.SIGINT)
    assert server.process.wait(GIVE_UP_S * 2) == 0
    eventually(lambda: server.processes() == {})
    assert "Traceback" not in server.output.read_text()


def test_term(server, eventually):
    """TERM to the main process ends it with 0, and the sandbox ends with it."""
    assert server.end(signal.SIGTERM) == 0
    eventually(lambda: server.processes() == {})
    assert "Traceback" not in server.output.read_text()


def test_kill_9(server, eventually):
    """kill -9 of the main process leaves nothing for long: the workers end, and the sandbox with them."""
    assert server.post("/api/llm/chat", {"prompt": "x"}).status_code == 200
    assert len(sandboxes_of(server)) == 1
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    eventually(lambda: not sandboxes_of(server))
    eventually(lambda: not server.processes())


def test_key_of_the_environment(serving, sandbox):
    """With a key it starts no sandbox and calls the address that it is given."""
    with serving([SERVE], DEEPSEEK_API_KEY="sk-test", DEEPSEEK_BASE_URL=sandbox.url) as server:
        assert server.post("/api/llm/chat", {"prompt": "x"}).status_code == 200
        assert sandbox.stats()["requests"] == 1
        assert sandboxes_of(server) == []
        assert "sk-test" not in server.output.read_text()
        os.killpg(server.pid, signal.SIGINT)
        assert server.process.wait(GIVE_UP_S * 2) == 0


def refused(*arguments, **env):
    """Runs bin/serve with what it must refuse: the exit code, standard output and error."""
    whole = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "DEEPSEEK_API_KEY": "", **env}
    ended = subprocess.run(
        [SERVE, *arguments],
        cwd="/",
        env=whole,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_port_in_use():
    """A port that is in use is an exit with 1 and one line that names it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output, error = refused(HOST="127.0.0.1", PORT=str(port))
    assert (code, output) == (1, "")
    assert error == (
        f"serve: cannot listen on 127.0.0.1:{port}: Address already in use (PORT=... or HOST=... changes it)\n"
    )


@pytest.mark.parametrize("port", ["http", "0", "65536"])
def test_wrong_port(port):
    """A PORT that is no port is an exit with 2 and one line that names it."""
    code, output, error = refused(PORT=port)
    assert (code, output) == (2, "")
    assert error.count("\n") == 1
    assert f"PORT='{port}': need a whole number from 1 to 65535" in error


def test_wrong_console_port():
    """A CONSOLE_PORT that is no port is an exit with 2 and one line."""
    code, output, error = refused(CONSOLE_PORT="65536")
    assert (code, output) == (2, "")
    assert "CONSOLE_PORT='65536': need a whole number from 0 to 65535" in error


def test_wrong_setting():
    """A setting that is wrong is an exit with 2 and one line, before anything is started."""
    code, output, error = refused(LLM_MAX_WORKERS="five")
    assert (code, output) == (2, "")
    assert error == "serve: LLM_MAX_WORKERS='five': need a whole number from 1 to 1000\n"


def test_unknown_argument():
    """An argument that it does not know is an exit with 2 and one line."""
    code, output, error = refused("--port=1")
    assert (code, output, error.count("\n")) == (2, "", 1)


def test_help():
    """--help is an exit with 0 that names the variables."""
    code, output, error = refused("--help")
    assert (code, error) == (0, "")
    assert "PORT" in output
    assert "DEEPSEEK_API_KEY" in output


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkdir, "it is not a file"),
        (os.mkfifo, "it is not a file"),
        (lambda path: path.write_bytes(b"WEB_API_TOKEN=\xff"), "it is not UTF-8"),
        (
            lambda path: path.write_text('WEB_API_TOKEN="abc\n'),
            "line 1 names WEB_API_TOKEN and is no assignment",
        ),
    ],
    ids=["directory", "fifo", "bytes", "token"],
)
def test_env_file_that_cannot_be_read(tmp_path, make, why):
    """With a .env that cannot be read gunicorn does not start: it would serve without the token that is in there."""
    (tmp_path / "webapp").symlink_to(ROOT / "webapp")
    make(tmp_path / ".env")
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "webapp/gunicorn.conf.py", "webapp.wsgi:app"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ended.returncode, ended.stderr) == (2, f".env cannot be read: {why}\n")


def test_literal_token(serving, sandbox, tmp_path):
    """A token with `$` and braces in it is the token, nothing is put in their place."""
    (tmp_path / "webapp").symlink_to(ROOT / "webapp")
    (tmp_path / ".env").write_text("WEB_API_TOKEN=pre${x}post\n")
    unset = ["env", "--unset=WEB_API_TOKEN", f"--chdir={tmp_path}", f"PYTHONPATH={ROOT}"]
    command = [*unset, sys.executable, "-m", "gunicorn", "-c", "webapp/gunicorn.conf.py", "webapp.wsgi:app"]
    env = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}
    with serving(command, **env) as server:
        answers = {
            token: server.ask("GET", "/api/llm/status", headers={"Authorization": f"Bearer {token}"})
            for token in ("pre${x}post", "prepost")
        }
    assert [answer.status_code for answer in answers.values()] == [200, 401]


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_output_that_nobody_takes(serving, redirection):
    """It serves also where nobody can have what it says: a log on a full disk stops nothing."""
    with serving(["sh", "-c", f'exec "$0" {redirection}', SERVE]) as server:
        assert server.post("/api/llm/chat", {"prompt": "你好"}).status_code == 200
        assert len(sandboxes_of(server)) == 1
        assert server.end() in (0, 120)  # Python's own code, where its stderr cannot be flushed
