"""The design's table of layers as data, and every import of the project held against it.

A new module fails until it has its row: say which layer it is in and what it may import.
"""

import ast
import graphlib
import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest
from support.patience import GIVE_UP_S

ROOT = Path(__file__).parents[2]
PACKAGES = ("deepseek_client", "webapp")
ANYTHING = frozenset({"*"})


class Row(NamedTuple):
    """Modules of one kind, and what they may import beside the standard library.

    `own` names our modules: a number is all of a layer, a pattern is those that are not in a layer above.
    """

    layer: int
    modules: str
    third_party: frozenset = frozenset()
    own: frozenset = frozenset()


def row(layer, modules, third_party="", own=()):
    """A row, from words."""
    return Row(layer, modules, frozenset(third_party.split()), frozenset(own))


OPS = [f"deepseek_client.ops.{name}" for name in (
    "doctor", "doctor.finding", "doctor.queue", "doctor.serving", "doctor.situation", "doctor.sources", "doctor.texts",
    "doctor.upstream", "tune", "tune.measure", "tune.model", "tune.observed", "tune.report", "tune.workload",
    "worker")]  # fmt: skip
TABLE = [
    Row(7, " ".join(["webapp.wsgi webapp.gunicorn.conf deepseek_client.__main__ deepseek_client.ops", *OPS]),
        ANYTHING, ANYTHING),
    # A rollback needs nothing of the application, which may not load.
    row(7, "deepseek_client.ops.deployment deepseek_client.ops.env_file deepseek_client.ops.gunicorn_command "
        "deepseek_client.ops.refusal deepseek_client.ops.toggle deepseek_client.ops.toggle.report", "dotenv",
        {*(f"deepseek_client.ops.{name}" for name in ("deployment", "env_file", "gunicorn_command", "refusal")),
         "deepseek_client.ops.toggle.*", "deepseek_client.errors", "deepseek_client.settings_file",
         "deepseek_client.telemetry.testimony"}),
    # An operator's program, which lies beside the application and asks nothing of it but what a person tries.
    row(6, " ".join(f"webapp.console{name}" for name in ("", ".access", ".application", ".command", ".configuration",
                    ".findings", ".histograms", ".listening", ".queue", ".reports", ".sample", ".sizing", ".texts",
                    ".trying", ".watching", ".windows")), "flask werkzeug",
        {"deepseek_client", "deepseek_client.tasks",
         *(f"deepseek_client.{name}" for name in ("command_line", "queueing", "settings_file")),
         *(f"deepseek_client.telemetry{name}" for name in ("", ".metric_directory", ".metric_reading", ".metrics",
                                                           ".testimony")), "webapp.console.*"}),
    row(6, "webapp webapp.access webapp.answers webapp.app webapp.bodies webapp.extensions webapp.heads webapp.openapi "
        "webapp.routes webapp.routes.llm webapp.routes.probes webapp.routes.tasks", "flask werkzeug",
        {"deepseek_client", "deepseek_client.flask", "deepseek_client.settings_file", "deepseek_client.tasks",
         "webapp.*"}),
    row(5, " ".join(f"deepseek_client.flask{name}" for name in ("", ".arrival", ".console_calls", ".envelope",
                    ".extension", ".first_request", ".gunicorn_bounds", ".gunicorn_leaving", ".leaving", ".lingering",
                    ".log_lines", ".loop", ".metrics_page", ".problems", ".rollback", ".sources", ".streaming")),
        "flask werkzeug",
        {0, 1, 2, 3, 4, "deepseek_client.flask.*"}),
    row(5, " ".join(f"deepseek_client.tasks{name}" for name in (
        "", ".app", ".broker", ".client", ".ids", ".jobs", ".keeper", ".ledger", ".listener",
        ".message", ".metrics_server", ".overview", ".runner", ".scripts", ".sweeper", ".withdrawals")),
        "celery kombu redis",
        {0, 1, 2, 3, 4, "deepseek_client.tasks.*"}),
    row(4, "deepseek_client", "", {0, 1, 2, 3, 4}),
    row(4, "deepseek_client.deepseek", "", {0, 1, 2, 3, "deepseek_client.facade"}),
    row(4, "deepseek_client.paths", "", {0, 1, 2, 3, "deepseek_client.facade"}),
    row(4, "deepseek_client.facade", "", {0, 1, 2, 3}),
    row(3, " ".join(f"deepseek_client.calls{name}" for name in ("", ".batches", ".call", ".caller", ".breaker",
                    ".chunks", ".ending", ".leases", ".options", ".places", ".retries", ".streams")), "",
        {0, 1, 2, "deepseek_client.calls.*"}),
    row(3, "deepseek_client.answers", "requests", {0, 1, "deepseek_client.calls.call", "deepseek_client.fences"}),
    row(3, "deepseek_client.fences", "", {0}),
    row(2, "deepseek_client.engines deepseek_client.engines.admission deepseek_client.engines.daemons "
        "deepseek_client.engines.deadlines deepseek_client.engines.inline deepseek_client.engines.shared "
        "deepseek_client.engines.threads deepseek_client.engines.turns", "",
        {0, "deepseek_client.engines.*"}),
    row(2, "deepseek_client.engines.loop deepseek_client.engines.loop_waits "
        "deepseek_client.engines.loop_watchdog", "greenlet",
        {0, "deepseek_client.engines.*", "deepseek_client.wire.waiting"}),
    row(1, "deepseek_client.client", "requests"),
    row(1, "deepseek_client.models", "requests", {0}),
    row(1, "deepseek_client.wire deepseek_client.wire.adapter deepseek_client.wire.blocked "
        "deepseek_client.wire.connections deepseek_client.wire.greenlets deepseek_client.wire.heads "
        "deepseek_client.wire.sockets deepseek_client.wire.waiting deepseek_client.wire.watch "
        "deepseek_client.wire.watchdog deepseek_client.wire.environment deepseek_client.wire.exchange "
        "deepseek_client.wire.failures deepseek_client.wire.oneshot deepseek_client.wire.originals "
        "deepseek_client.wire.redirects deepseek_client.wire.replies deepseek_client.wire.tcp deepseek_client.wire.tls",
        "requests urllib3", {0, "deepseek_client.wire.*"}),
    row(1, "deepseek_client.telemetry deepseek_client.telemetry.logs deepseek_client.telemetry.metrics "
        "deepseek_client.telemetry.metric_directory deepseek_client.telemetry.metric_files "
        "deepseek_client.telemetry.metric_reading "
        "deepseek_client.telemetry.metric_values", "prometheus_client", {0, "deepseek_client.telemetry.*"}),
    *(
        row(1, f"deepseek_client.sandbox{module}", "aiohttp",
            {"deepseek_client.sandbox.*", "deepseek_client.command_line", "deepseek_client.settings"})
        for module in ("", ".__main__", ".chat_request", ".config", ".faults", ".framing", ".game", ".game.intents",
                       ".game.rules", ".refusals", ".replies", ".script", ".server", ".thread", ".traffic",
                       ".web_pages", ".wire")
    ),
    row(1, "deepseek_client.account_server deepseek_client.queue_connection", "redis",
        {"deepseek_client.queue_connection"}),
    row(1, "deepseek_client.telemetry.testimony"),
    row(1, "deepseek_client.settings_file", "dotenv", {0}),
    row(0, "deepseek_client.command_line deepseek_client.errors deepseek_client.events deepseek_client.fork_safe "
        "deepseek_client.queueing deepseek_client.request_id deepseek_client.settings", "", {0}),
]  # fmt: skip
ROW_OF = {module: kind for kind in TABLE for module in kind.modules.split()}

TOP_LEVEL = {
    *("deepseek_client", "webapp", "tests", "bin", "setup.cfg", "requirements.txt"),
    *("README.md", "README.zh-CN.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "ruff.toml"),
    *(".ci", ".env.example", ".gitignore"),
}
EXECUTING = {"deepseek_client.engines.threads", "deepseek_client.engines.daemons"}
EXECUTORS = {"Executor", "ThreadPoolExecutor", "ProcessPoolExecutor", "run_in_executor", "to_thread"}


def module_name(file):
    """webapp/__init__.py is webapp, webapp/gunicorn.conf.py is webapp.gunicorn.conf."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}
each_module = pytest.mark.parametrize("module", FILES)


def tree_of(module):
    """The module's syntax tree."""
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports_of(module):
    """Every module that a module imports, at its top or inside a function, by absolute name."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name for name in submodules if name in FILES)
            if not all(name in FILES for name in submodules):
                yield base


def own_imports_of(module):
    """Those of its imports that are ours."""
    return {name for name in imports_of(module) if name.partition(".")[0] in PACKAGES}


def row_of(module):
    """The module's row; a failure that says what to do if it has none."""
    assert module in ROW_OF, f"{module} is in no row of TABLE: place it in a layer (design, section 2)"
    return ROW_OF[module]


def may_import(importer, imported):
    """Whether the importer's row names the imported module."""
    importing, layer = row_of(importer), row_of(imported).layer
    named = any(fnmatch(imported, str(name)) for name in importing.own)
    return layer in importing.own or (named and layer <= importing.layer)


@each_module
def test_module_has_its_row(module):
    """Each module is placed in a layer."""
    assert row_of(module)


@each_module
def test_own_imports_point_down(module):
    """A module imports only those of our modules that its row names."""
    wrong = sorted(name for name in own_imports_of(module) if not may_import(module, name))
    assert wrong == [], f"{module} may not import {', '.join(wrong)}"


@each_module
def test_third_party_imports_are_those_of_the_row(module):
    """A module imports only those packages of others that its row names."""
    allowed = row_of(module).third_party
    names = {name.partition(".")[0] for name in imports_of(module)}
    foreign = sorted(names - set(PACKAGES) - sys.stdlib_module_names - allowed)
    assert foreign == [] or allowed == ANYTHING, f"{module} may not import {', '.join(foreign)}"


def test_rows_themselves_point_down():
    """No row allows a layer above its own."""
    for kind in TABLE:
        for name in kind.own - ANYTHING:
            layers = [name] if isinstance(name, int) else [ROW_OF[module].layer for module in match(name)]
            assert min(layers) <= kind.layer, (kind.modules, name)


def match(pattern):
    """The modules of the table that a pattern means."""
    return [module for module in ROW_OF if fnmatch(module, pattern)]


def test_imports_have_no_cycle():
    """The modules can be put in an order in which each imports only earlier ones."""
    order = graphlib.TopologicalSorter({module: own_imports_of(module) for module in FILES})
    assert len(list(order.static_order())) >= len(FILES)


def test_pool_alone_knows_executors():
    """No other module makes an executor or hands work to one."""
    for module in FILES:
        nodes = list(ast.walk(tree_of(module)))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        names |= {node.name for node in nodes if isinstance(node, ast.alias)}
        assert not names & EXECUTORS or module in EXECUTING, (
            module,
            names & EXECUTORS,
        )


def test_top_level_is_the_documented_one():
    """Beside what .gitignore names and tools leave, the top level holds the design's entries and no other."""
    ignored = [".git", ".*_cache", "__pycache__", "PKG-INFO"]  # the last one is in an unpacked sdist
    gitignore = ROOT / ".gitignore"
    if gitignore.exists():
        ignored += [line.strip().strip("/") for line in gitignore.read_text().splitlines() if line.strip()]
    names = {
        path.name for path in ROOT.iterdir() if not any(fnmatch(path.name, pattern) for pattern in ignored)
    }
    assert names <= TOP_LEVEL, f"not in the design: {', '.join(sorted(names - TOP_LEVEL))}"


@each_module
def test_file_is_short(module):
    """No file has more than 400 lines; the facade stays under 200."""
    limit = 199 if module == "deepseek_client.facade" else 400
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= limit


# Imports modules of ours, after those of others, and prints what that did.
WATCH = """
import json, os, socket, sys, threading
from collections import UserDict
from importlib import import_module
from importlib.util import find_spec

ours, others = json.loads(sys.argv[1])
for name in others:
    if find_spec(name):
        import_module(name)

did = []

class Environment(UserDict):
    def __getitem__(self, name):
        if name in self.watched: did.append("read " + name)
        return super().__getitem__(name)
    def __contains__(self, name):
        if name in self.watched: did.append("read " + name)
        return super().__contains__(name)
    def get(self, name, default=None):
        return self[name] if name in self else default
    def __iter__(self):
        did.append("read all variables")
        return super().__iter__()

class Socket(socket.socket):
    def __init__(self, *args, **kwargs):
        did.append("opened a socket")
        super().__init__(*args, **kwargs)

class Thread(threading.Thread):
    def start(self):
        did.append("started a thread")
        super().start()

environment = Environment(os.environ)
environment.watched = json.loads(sys.argv[2])
os.environ, socket.socket, threading.Thread = environment, Socket, Thread
for name in ours:
    import_module(name)
if threading.enumerate() != [threading.main_thread()]: did.append("left a thread")
print(json.dumps(sorted(set(did))))
print(json.dumps(sorted(sys.modules)))
"""
VARIABLES = [
    *("LLM_MAX_WORKERS", "LLM_QUEUE_LIMIT", "LLM_DEADLINE_S", "LLM_MAX_ATTEMPTS", "LLM_BATCH_LIMIT"),
    *(
        "LLM_PROMPT_LIMIT",
        "LLM_ACCOUNT_LIMIT",
        "USE_ASYNC_DEEPSEEK",
        "DEEPSEEK_TRANSPORT",
        "DEEPSEEK_API_KEY",
        "DEEPSEEK_BASE_URL",
    ),
    *("DEEPSEEK_MODEL", "DEEPSEEK_VERBOSE", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "WEB_API_TOKEN"),
    *("HOST", "PORT", "WEB_CONCURRENCY", "WEB_THREADS", "PROMETHEUS_MULTIPROC_DIR"),
]


def watched_import(modules, tmp_path):
    """What importing the modules did in a new process, and which modules that process had then."""
    others = sorted({name for kind in TABLE for name in kind.third_party - ANYTHING - {"aiohttp"}})
    if any("sandbox" in module for module in modules):
        others.append("aiohttp.web")
    command = [sys.executable, "-c", WATCH, json.dumps([modules, others]), json.dumps(VARIABLES)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLM_MAX_WORKERS": "five"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=GIVE_UP_S
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("package", [*PACKAGES, "deepseek_client.sandbox"])
def test_import_does_nothing(tmp_path, package):
    """Importing all of a package's modules starts no thread, opens no socket, reads none of our variables."""
    modules = [
        module for module in FILES if f"{module}.".startswith(f"{package}.") and row_of(module).layer < 7
    ]
    did, _ = watched_import(modules, tmp_path)
    assert did == []


def test_application_does_not_load_the_sandbox(tmp_path):
    """A process that serves has neither the sandbox nor its web framework in memory."""
    _, loaded = watched_import([*PACKAGES], tmp_path)
    assert [name for name in loaded if name.startswith(("aiohttp", "deepseek_client.sandbox"))] == []
