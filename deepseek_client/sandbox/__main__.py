"""The command `deepseek-client sandbox`, and `python -m deepseek_client.sandbox`."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from ..command_line import Parser, hold_output
from .config import SandboxConfig
from .server import SandboxServer

__all__ = ["main"]

_STDIN = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT, SIGTERM or, if asked for, the end of standard input.

    Args:
        arguments: None means the command line's.

    Returns:
        0 after a clean stop, 1 when the address cannot be bound; wrong arguments exit with 2.

    Threads: only the main thread, for it handles signals.
    """
    hold_output()
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    exit_on_eof = bool(values.pop("exit_on_eof"))
    try:
        server = SandboxServer(SandboxConfig(**values))
    except ValueError as exc:
        parser.error(str(exc))
    _allow_open_files()
    return asyncio.run(_serve(server, exit_on_eof))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="deepseek-client sandbox",
        description="Serve the DeepSeek API on loopback with canned replies. This is not DeepSeek.",
        epilog="Exit codes: 0 stopped, 1 the address cannot be bound, 2 wrong arguments.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default=SandboxConfig.host, help="loopback address to listen on")
    add("--port", type=int, default=SandboxConfig.port, help="0 takes any free port")
    add("--latency-ms", type=float, default=SandboxConfig.latency_ms, help="median time to a reply")
    add(
        "--latency-sigma",
        type=float,
        default=SandboxConfig.latency_sigma,
        help="0: constant, above: lognormal",
    )
    add("--concurrency", type=int, default=SandboxConfig.concurrency, help="requests in flight before a 429")
    add("--api-key", default=SandboxConfig.api_key, help="the one key to accept; empty accepts any")
    add("--certfile", default=SandboxConfig.certfile, help="PEM certificate: serve TLS")
    add("--keyfile", default=SandboxConfig.keyfile, help="PEM key, if it is not in the certfile")
    add("--keep-alive-s", type=float, default=SandboxConfig.keep_alive_s, help="close idle connections after")
    add(
        "--blank-line-every-s",
        type=float,
        default=SandboxConfig.blank_line_every_s,
        help="drip while a reply waits",
    )
    add("--exit-on-eof", action="store_true", help="stop when standard input ends")
    return parser


async def _serve(server: SandboxServer, exit_on_eof: bool) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        await server.start()
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else exc
        address = f"{server.config.host}:{server.config.port}"
        print(f"sandbox: cannot listen on {address}: {reason}", file=sys.stderr)
        return 1
    try:
        print(
            f"sandbox: {server.url} speaks the DeepSeek API with canned replies; this is not DeepSeek",
            flush=True,
        )
        if exit_on_eof:
            _call_on_eof(lambda: loop.call_soon_threadsafe(stopping.set))
        await stopping.wait()
    finally:
        await server.stop()
    return 0


def _call_on_eof(callback: Callable[[], object]) -> None:
    def read() -> None:
        try:
            while os.read(_STDIN, 4096):
                pass
        except OSError:
            pass  # standard input that is closed has ended too
        try:
            callback()
        except RuntimeError:
            pass  # the loop was closed by a signal meanwhile

    # A thread, not connect_read_pipe(): the selector refuses regular files and /dev/null.
    threading.Thread(target=read, name="sandbox-stdin", daemon=True).start()


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # The account's 2,500 requests in flight are 2,500 sockets; the usual soft limit is 1,024.
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
