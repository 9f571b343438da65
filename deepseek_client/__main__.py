"""The command `deepseek-client`, and `python -m deepseek_client`.

Each subcommand loads what it needs when it runs: a rollback must work where the application does not load.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from .command_line import Parser, hold_output, number, numbers, output_code
from .settings import ENGINES

__all__ = ["main"]

_DESCRIPTION = (
    "What an operator of an application with deepseek_client needs; run it in the deployment's directory."
)
_EPILOG = (
    "Exit codes: 0 done, 1 not done or something found, and one line says why, 2 wrong arguments or settings."
)

_TOGGLE = """\
Turns asynchronous calls on or off in the gunicorn that serves this directory: writes USE_ASYNC_DEEPSEEK into .env (the
file as it was: .env.bak), sends SIGHUP, and waits until each worker is new and testifies for the mode.

  enable, disable   do that, or nothing if .env and all workers agree already
  status            shows the mode in .env and that of each worker: its pid, engine, and since when
"""
_TOGGLE_EPILOG = """\
Workers are found by what they have written into .deepseek/, or where DEEPSEEK_RUN_DIR says (environment or .env); no
request is made. What a reload would do is tried first, in a process of its own. A server that is no gunicorn hears no
SIGHUP: .env is written, and it must be restarted.

Exit codes: 0 proved (status: .env and all workers agree), 1 not, and one line says why, 2 wrong arguments or settings.
When none of the new workers can have taken the new mode, .env is put back; otherwise the change stays.
"""
_TUNE = """\
Measures how long calls wait for a thread, for several numbers of workers, and recommends the smallest with which the
95th percentile of waiting is under a tenth of the model's median. A sandbox of its own takes the time that the profile
says; arrivals and durations are the same for each number. Beside it stands what queueing theory says.

  deepseek-client tune --p50-ms 200 --p95-ms 500 --rate 20
  deepseek-client tune --from-metrics http://127.0.0.1:5000/metrics --processes 2
  deepseek-client tune --real --max-calls 400          calls the API, after a question, at your expense
"""
_TUNE_EPILOG = """\
LLM_MAX_WORKERS is per process: divide what a deployment gets by its processes.

Exit codes: 0 a number is recommended, 1 none is enough or it could not be measured, 2 wrong arguments or settings.
"""
_DOCTOR = """\
Reads the settings as a server in this directory would, from the environment and .env, and says what will hurt, why,
and what helps; also the options of a gunicorn that runs here, and the server that CELERY_BROKER_URL names. Changes
nothing, asks nobody else, never prints a key.
"""
_DOCTOR_EPILOG = """\
Levels: an error makes calls fail or keeps the server from starting; a warning hurts under load or at a reload, or is
unsafe; a hint may be meant so.

Exit codes: 0 nothing worse than a hint, 1 an error or a warning, 2 wrong arguments.
"""


_WORKER = """\
Takes tasks from the queue that CELERY_BROKER_URL names and makes their calls, LLM_MAX_WORKERS at once, with the
settings that the web has, from the environment and .env of this directory; any number of workers on any machines.
"""
_WORKER_EPILOG = """\
At a SIGTERM or Ctrl-C it takes no more tasks and finishes those that run, within LLM_DEADLINE_S + 5 seconds. A server
that is away is waited for. WORKER_METRICS=HOST:PORT shows metrics there.

Exit codes: 0 it was told to end, 1 it cannot work or had to leave calls, and one line says why, 2 wrong arguments or
settings.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the exit code; leaves with 2 when the arguments are wrong.

    Args:
        arguments: None means the command line's.

    Threads: the main one.
    """
    hold_output()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["sandbox"]:  # its arguments are its own
        return _sandbox(arguments[1:])
    if arguments[:1] == ["console"]:
        return _console(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        return output_code(_run(options), options.command)
    except KeyboardInterrupt:
        hint = " (deepseek-client toggle status says what runs now)" if options.command == "toggle" else ""
        print(f"{options.command}: interrupted{hint}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if options.command == "toggle":
        from .ops.toggle import main as toggle

        return toggle(options.verb, options.wait, options.pid)
    if options.command == "doctor":
        from .ops.doctor import main as doctor

        return doctor(options.hosts, options.json)
    if options.command == "worker":
        from .ops.worker import main as worker

        return worker()
    if options.command == "tune":
        return _tune(options)
    if options.command == "gunicorn-conf":
        print(importlib.import_module("deepseek_client.flask").gunicorn_conf(), end="")
        return 0
    from . import __version__

    print(__version__)
    return 0


def _sandbox(arguments: Sequence[str]) -> int:
    try:
        from .sandbox.__main__ import main as sandbox
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        print("sandbox: need aiohttp: pip install 'deepseek-client-async[sandbox]'", file=sys.stderr)
        return 1
    return sandbox(arguments)


def _tune(options: argparse.Namespace) -> int:
    try:
        from .ops.tune import main as tune
    except ModuleNotFoundError as error:
        print(f"tune: need {error.name}: pip install deepseek-client-async", file=sys.stderr)
        return 1
    return tune(options)


def _console(arguments: Sequence[str]) -> int:
    # The wheel has it as a part of the library, the tree as a part of our application.
    of_wheel = importlib.util.find_spec("deepseek_client.console") is not None
    package = "deepseek_client.console" if of_wheel else "webapp.console"
    code: int = importlib.import_module(f"{package}.command").main(arguments)
    return code


def _parser() -> Parser:
    parser = Parser(prog="deepseek-client", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str, description: str = "", epilog: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=description or f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    doctor = add("doctor", "says what of the settings will hurt", _DOCTOR, _DOCTOR_EPILOG)
    doctor.add_argument(
        "--hosts",
        type=number(int, 1, 100_000, "hosts"),
        default=1,
        metavar="N",
        help="how many machines serve with these settings, for the account's limit of calls in flight (1)",
    )
    doctor.add_argument(
        "--json",
        action="store_true",
        help='prints a list of {"level", "code", "what", "why", "remedy"} instead of text',
    )
    toggle = add("toggle", "the rollback switch, with a proof", _TOGGLE, _TOGGLE_EPILOG)
    toggle.add_argument("verb", choices=("enable", "disable", "status"))
    toggle.add_argument(
        "--wait",
        type=number(float, 0, 3600, "seconds"),
        metavar="SECONDS",
        help="how long workers may take to start and to leave (default: gunicorn's graceful_timeout and 10)",
    )
    toggle.add_argument(
        "--pid",
        type=number(int, 1, 2**31 - 1, "a pid"),
        metavar="PID",
        help="the gunicorn master that is meant (default: all that serve this directory)",
    )
    add("worker", "makes the calls of a queue of tasks (extra `tasks`)", _WORKER, _WORKER_EPILOG)
    _add_tune(add("tune", "measures which LLM_MAX_WORKERS a load needs", _TUNE, _TUNE_EPILOG))
    add("sandbox", "serves DeepSeek's API on loopback with canned replies (extra `sandbox`)")
    add("console", "shows what the workers do and need, on a page of this machine")
    add(
        "gunicorn-conf",
        "prints the lines of a gunicorn configuration that end calls at a stop and bound connections",
    )
    add("version", "prints the version")
    return parser


def _add_tune(tune: argparse.ArgumentParser) -> None:
    def add(name: str, text: str, **options: Any) -> None:
        tune.add_argument(name, help=text, **options)

    milliseconds = number(float, 0, 600_000, "milliseconds")
    add("--p50-ms", "median time of the model (200)", type=milliseconds, default=200.0, metavar="MS")
    add("--p95-ms", "its 95th percentile (500)", type=milliseconds, default=500.0, metavar="MS")
    add(
        "--rate",
        "calls that arrive per second in one process (20)",
        type=number(float, 0, 10_000, "calls per second"),
        default=20.0,
        metavar="N",
    )
    add("--from-metrics", "takes rate and times from the metrics page of a running deployment", metavar="URL")
    add(
        "--watch",
        "how long to look at that page (30)",
        type=number(float, 0, 3600, "seconds"),
        default=30.0,
        metavar="SECONDS",
    )
    add(
        "--processes",
        "processes that share the load on that page (1)",
        type=number(int, 1, 100_000, "processes"),
        default=1,
        metavar="N",
    )
    add(
        "--workers",
        "the numbers of workers to try, such as 4,8,16 (around what the model says)",
        type=numbers(1, 1000, "workers"),
        metavar="N,N",
    )
    add("--engines", "what runs the calls (threads)", nargs="+", choices=ENGINES, default=["threads"])
    add(
        "--seconds",
        "how long to measure each number (10)",
        type=number(float, 0, 3600, "seconds"),
        default=10.0,
        metavar="SECONDS",
    )
    add("--real", "calls the API of the settings instead of a sandbox", action="store_true")
    add(
        "--max-calls",
        "the most calls that --real makes in all (200)",
        type=number(int, 2, 1_000_000, "calls"),
        default=200,
        metavar="N",
    )
    add(
        "--usd-per-million-tokens",
        "for the estimate before --real: what the vendor's price list says (1)",
        type=number(float, 0, 10_000, "USD"),
        default=1.0,
        metavar="USD",
    )
    add("--yes", "asks no question before --real", action="store_true")
    add("--json", "prints an object instead of the table", action="store_true")
    add("--plot", "draws waiting over workers into this PNG file (needs matplotlib)", metavar="FILE")


if __name__ == "__main__":
    sys.exit(main())
