"""What a reload would do, tried in a process of its own: with wrong settings gunicorn's master would end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from ..env_file import VARIABLE
from ..refusal import Refusal

__all__ = ["Rehearsal", "rehearse"]

_GIVE_UP_S = 60
_CODE = """
import json, runpy, sys
from deepseek_client import ConfigError
try:
    import webapp.wsgi
except ConfigError as error:
    sys.exit(print(error, file=sys.stderr) or 2)
config = runpy.run_path("webapp/gunicorn.conf.py")
print(json.dumps([config[name] for name in ("host", "port", "graceful_timeout")]))
"""


class Rehearsal(NamedTuple):
    """How the server is reached, and how long its old workers may take to leave after a reload."""

    host: str
    port: int
    graceful_s: float


def rehearse(environ: Mapping[str, str], value: str) -> Rehearsal:
    """Loads the application and gunicorn's settings as a reload would, with the server's environment and this .env.

    Args:
        environ: what the server was started with.
        value: of VARIABLE; "" leaves it to .env.

    Raises:
        Refusal: they do not load, so that a reload would end the server; exit code 2 if settings are wrong.
    """
    trial = {**environ, VARIABLE: value} if value else dict(environ)
    trial.pop("PROMETHEUS_MULTIPROC_DIR", None)  # this process does not count
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CODE], env=trial, capture_output=True, text=True, timeout=_GIVE_UP_S
        )
    except subprocess.TimeoutExpired:
        raise Refusal(f"a reload might not succeed: the application did not load in {_GIVE_UP_S} s") from None
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise Refusal(f"a reload would end the server: {reason}", exit_code=2 if done.returncode == 2 else 1)
    return Rehearsal(*json.loads(done.stdout.splitlines()[-1]))
