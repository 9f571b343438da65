"""The command `deepseek-client console`, which bin/serve starts beside gunicorn."""

from __future__ import annotations

import _thread
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server

from deepseek_client import ConfigError
from deepseek_client.command_line import Parser, number

from .application import create_console
from .configuration import environment

__all__ = ["main"]

_HOST = "127.0.0.1"
_PORT = 5001
_STDIN = 0
_DESCRIPTION = """\
Serves a page on loopback that shows what the workers of this directory's server do, lets a person try a prompt, and
says how many workers the load needs. It takes no time of a worker, so that it answers when all of them are busy.
"""
_EPILOG = "Exit codes: 0 stopped, 1 the address cannot be bound, 2 wrong arguments or settings."


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGINT, SIGTERM or, if asked for, the end of standard input; returns the exit code.

    Args:
        arguments: None means the command line's.

    Threads: the main one.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        port = int(options.port if options.port is not None else _port_of_environment())
        # As the application does, which reads them from its environment.
        for name in ("PROMETHEUS_MULTIPROC_DIR", "TMPDIR"):
            os.environ.setdefault(name, environment().get(name, ""))
        app = create_console(options.application, threads=int(options.threads), master=int(options.master))
    except ConfigError as error:
        print(f"console: {error}", file=sys.stderr)
        return 2
    try:
        # Not by werkzeug, which ends the process with a text of its own where the port is taken.
        listener = socket.create_server((_HOST, port))
    except OSError as error:
        print(f"console: cannot listen on {_HOST}:{port}: {os.strerror(error.errno or 0)}", file=sys.stderr)
        return 1
    with listener:
        _serve(app, listener, options.exit_on_eof)
    return 0


def _serve(app: Flask, listener: socket.socket, exit_on_eof: bool) -> None:
    port = listener.getsockname()[1]
    server = make_server(_HOST, port, app, threaded=True, request_handler=_Handler, fd=listener.fileno())
    # `shutdown` waits until this thread has done it. The handler raises nothing: wherever it runs, that may be lost, in
    # the callback of a weak reference for one.
    for told in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told, lambda _number, _frame: _thread.start_new_thread(server.shutdown, ()))
    try:
        app.extensions["console"].watch.start()
        if exit_on_eof:
            threading.Thread(
                target=_shut_down_at_eof, args=(server,), name="console-stdin", daemon=True
            ).start()
        print(f"Console on http://{_HOST}:{port}", flush=True)
        server.serve_forever()
    finally:
        server.server_close()


class _Handler(WSGIRequestHandler):
    """Werkzeug's, with kept connections, and without a line of the log for each look at the page."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # an idle connection costs a thread

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        pass

    def version_string(self) -> str:
        return "console"


def _parser() -> Parser:
    parser = Parser(
        prog="deepseek-client console", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--port",
        type=number(int, 0, 65535, "a port"),
        help=f"where to listen on {_HOST}, 0 for any free port (default: CONSOLE_PORT, else {_PORT})",
    )
    add(
        "--application",
        default="",
        metavar="URL",
        help="where the application serves (default: that of HOST and PORT, else http://127.0.0.1:5000)",
    )
    add(
        "--threads",
        type=number(int, 0, 1000, "threads"),
        default=0,
        metavar="N",
        help="requests that each of its worker processes takes at a time (default: unknown)",
    )
    add(
        "--master",
        type=number(int, 0, 2**31 - 1, "a pid"),
        default=0,
        metavar="PID",
        help="the server that is meant (default: all that serve this directory)",
    )
    add("--exit-on-eof", action="store_true", help="stop when standard input ends")
    return parser


def _port_of_environment() -> int:
    text = (environment().get("CONSOLE_PORT") or "").strip() or str(_PORT)
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65535):
        raise ConfigError(f"CONSOLE_PORT={text!r}: need a whole number from 1 to 65535")
    return int(text)


def _shut_down_at_eof(server: Any) -> None:
    try:
        while os.read(_STDIN, 4096):
            pass
    except OSError:
        pass  # standard input that is closed has ended, too
    server.shutdown()
