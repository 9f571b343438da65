"""How processes are started so that they do not outlive this one, asked, and ended."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "SoakError", "ask", "end", "start"]

ROOT = Path(__file__).parents[3]
_FOLDER = ROOT / "bin"  # where they run: no .env is there, and no module that would hide another
_ASK_S = 5
_OF_THE_MACHINE = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")


class SoakError(Exception):
    """The run cannot go on; the message is one line."""


def start(command: list[str], env: dict[str, str], **streams: Any) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, where Ctrl-C does not reach it before this one is done.

    Args:
        env: beside the little that it takes over from this process: nothing of the machine changes a run.
    """
    inherited = {name: os.environ[name] for name in _OF_THE_MACHINE if name in os.environ}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "programs")])
    return subprocess.Popen(
        command,
        env={**inherited, "PYTHONPATH": paths, **env},
        cwd=_FOLDER,
        start_new_session=True,
        **streams,
    )


def end(process: subprocess.Popen[bytes], patience_s: float) -> int:
    """Ends a process that this one started, by force if it does not go by itself; its exit code."""
    process.terminate()
    try:
        return process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def ask(address: str, method: str, path: str, body: Any = None, trust: ssl.SSLContext | None = None) -> Any:
    """The JSON that comes back, on a connection of its own.

    Args:
        trust: for HTTPS; None means HTTP.

    Raises:
        OSError: nobody answered.
        http.client.HTTPException: it was not HTTP.
        ValueError: it was not JSON.
    """
    if trust is None:
        connection = http.client.HTTPConnection(address, timeout=_ASK_S)
    else:
        connection = http.client.HTTPSConnection(address, timeout=_ASK_S, context=trust)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Connection": "close"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()
