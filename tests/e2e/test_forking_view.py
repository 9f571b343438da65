"""Processes that a view forks under gunicorn: what happens to them is no business of the worker's."""

import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

APPLICATION = """
import os, signal
from types import SimpleNamespace
from flask import Flask, request
from deepseek_client.flask import DeepSeek

app = Flask("forking")
llm = DeepSeek(app, client=SimpleNamespace(ask=lambda: "answered"), errors="raise")

@app.post("/fork")
def fork():
    mine = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if signal.set_wakeup_fd(-1) == -1 else 2
            signal.raise_signal(request.json["signal"])
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"code": code, "pid": mine}

@app.get("/ask")
async def ask():
    return {"said": await llm.client.ask_async(), "pid": os.getpid()}
"""


@pytest.mark.parametrize("threads", [1, 4], ids=["sync", "gthread"])
def test_signals_of_a_child(serving, tmp_path, threads):
    """A child writes none of its signals to its parent's watcher, and the parent goes on calling."""
    (tmp_path / "forking.py").write_text(APPLICATION)
    options = ["--threads", str(threads), "--graceful-timeout", "1", "forking:app"]
    command = ["sh", "-c", 'exec "$0" -m gunicorn -b 127.0.0.1:$PORT "$@"', sys.executable, *options]
    with serving(command, cwd=tmp_path, PYTHONPATH=str(ROOT), WEB_CONCURRENCY="1") as server:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            forked = server.post("/fork", {"signal": number}).json()
            assert forked["code"] == 0
            assert server.get("/ask").json() == {"said": "answered", "pid": forked["pid"]}
        assert server.end(signal.SIGTERM) == 0
