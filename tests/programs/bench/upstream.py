"""The sandboxes that every peer talks to, each a process of its own, and the one bundle that every peer trusts."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import certifi
import trustme

from .plan import LATENCY_MS, TASK_LATENCY_MS

__all__ = ["ROOT", "clean_environment", "end", "running_sandboxes"]

ROOT = Path(__file__).parents[3]
_START_S = 20
# What the machine says of trust, proxies and this project would hit some peers and not the others.
_OF_THE_MACHINE = (
    "LLM_",
    "DEEPSEEK_",
    "CELERY_",
    "TASK_",
    "WEB_",
    "PROMETHEUS_",
    "SSL_CERT_",
    "OPENAI_",
    "GUNICORN_",
    "PYTHON",
)
_OF_THE_MACHINE_TOO = {"USE_ASYNC_DEEPSEEK", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HOST", "PORT", "NETRC"}


def clean_environment(bundle: Path) -> dict[str, str]:
    """The environment of every process of the run; clients of `requests` learn in it what to trust."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OF_THE_MACHINE)
        and name not in _OF_THE_MACHINE_TOO
        and not name.lower().endswith("_proxy")
    }
    paths = [str(ROOT), str(ROOT / "tests" / "programs")]
    return {**env, "REQUESTS_CA_BUNDLE": str(bundle), "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def running_sandboxes(folder: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """Addresses of the sandboxes "fast", "slow", "patient" (HTTPS) and "plain"; and the bundle to verify against.

    Raises:
        RuntimeError: one of them did not start.
    """
    authority = trustme.CA()
    certificate, bundle = folder / "sandbox.pem", folder / "bundle.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    # All that a deployment loads, and the one authority that is needed here.
    bundle.write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())
    env, tls = clean_environment(bundle), ["--certfile", str(certificate)]
    with ExitStack() as stack:
        urls = {
            "fast": stack.enter_context(_sandbox(env, ["--latency-ms", "0", *tls])),
            "slow": stack.enter_context(_sandbox(env, ["--latency-ms", str(LATENCY_MS), *tls])),
            "plain": stack.enter_context(_sandbox(env, ["--latency-ms", "0"])),
            "patient": stack.enter_context(_sandbox(env, ["--latency-ms", str(TASK_LATENCY_MS), *tls])),
        }
        yield urls, bundle


@contextmanager
def _sandbox(env: dict[str, str], options: list[str]) -> Iterator[str]:
    command = [sys.executable, "-m", "deepseek_client.sandbox", "--port", "0", "--exit-on-eof", *options]
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it tells of each client that goes in the middle of a reply
        start_new_session=True,
    )
    try:
        banner = _first_line(process)
        if not banner.startswith("sandbox: http"):
            raise RuntimeError(f"the sandbox did not start within {_START_S} s")
        yield banner.split()[1]
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that this one started, by force if it does not go by itself."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout
    output, text, end = process.stdout.fileno(), b"", time.monotonic() + _START_S
    while b"\n" not in text and select.select([output], [], [], max(0, end - time.monotonic()))[0]:
        chunk = os.read(output, 4096)
        if not chunk:
            break
        text += chunk
    return text.decode(errors="replace").partition("\n")[0]
