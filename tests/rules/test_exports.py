import ast
import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

import deepseek_client
from deepseek_client import errors

ROOT = Path(__file__).parents[2]

# Design, section 3, and the errors of section 6.
EXPORTS = [
    "AsyncDeepSeekClient",
    "AsyncFacade",
    "DeepSeekClient",
    "EndedCall",
    "Settings",
    "WorkerPool",
    "asyncify",
    "call_options",
    "get_default_client",
    "per_thread",
    *errors.__all__,
]


def module_name(file):
    """The dotted name of a file's module."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


# gunicorn.conf.py is a file of settings and no module; wsgi.py builds the app when it is imported.
FILES = {
    module_name(file): file
    for package in ("deepseek_client", "webapp")
    for file in sorted((ROOT / package).rglob("*.py"))
    if file.name not in ("gunicorn.conf.py", "wsgi.py")
}
LEGACY = "deepseek_client.client"
CONSOLE_ROOMS = {
    *("deepseek_client.command_line", "deepseek_client.queueing"),
    *(
        f"deepseek_client.telemetry.{module}"
        for module in ("metric_directory", "metric_reading", "metrics", "testimony")
    ),
}
each_module = pytest.mark.parametrize("name", FILES)


def public_objects(name):
    """The classes and functions that a module defines and exports."""
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):  # its own test says what is wrong with it
        value = getattr(module, public, None)
        if (inspect.isclass(value) or inspect.isroutine(value)) and value.__module__ == name:
            yield public, value


def own_docstring(value):
    """The docstring that somebody wrote, not the `Name(field, ...)` that dataclass and NamedTuple make."""
    text = value.__doc__ or ""
    return "" if inspect.isclass(value) and text.startswith(f"{value.__name__}(") else text


def public_members(cls):
    """Methods and properties that the class itself defines."""
    for name, member in vars(cls).items():
        if not name.startswith("_") and (
            inspect.isroutine(member) or isinstance(member, (property, classmethod, staticmethod))
        ):
            yield name, member


def is_pure_data(cls):
    """Whether instances are mere frozen values."""
    return issubclass(cls, tuple) or (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen)


PUBLIC_CLASSES = {
    f"{name}.{public}": value
    for name in FILES
    if name.startswith("deepseek_client")
    for public, value in public_objects(name)
    if inspect.isclass(value) and not issubclass(value, BaseException) and not is_pure_data(value)
}


def bound_names(tree):
    """Names that a module's top level defines, but for views, which bear their endpoint's name."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if not any(isinstance(decorator, ast.Call) for decorator in node.decorator_list):
                yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (part.id for target in targets for part in ast.walk(target) if is_bound(part))


def is_bound(node):
    """Whether a node is a name that gets a value."""
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def test_name_that_cannot_be_loaded_says_why(monkeypatch):
    """An AttributeError in the module of a name is not taken for a name that does not exist."""

    def fail(*_):
        raise AttributeError("type object 'GreenSocket' has no attribute 'shutdown'")

    monkeypatch.delitem(vars(deepseek_client), "asyncify", raising=False)
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"asyncify cannot be loaded: .*'GreenSocket'"):
        _ = deepseek_client.asyncify


def test_package_exports_the_documented_names():
    """`from deepseek_client import ...` offers the design's names and the errors, sorted, and no other."""
    assert deepseek_client.__all__ == sorted(EXPORTS)


@each_module
def test_module_says_what_is_public(name):
    """Each module has an `__all__` whose names exist, each once."""
    module = importlib.import_module(name)
    assert [public for public in module.__all__ if not hasattr(module, public)] == []
    assert len(set(module.__all__)) == len(module.__all__)


@each_module
def test_module_has_no_third_state(name):
    """What a module defines is in `__all__` or starts with an underscore; the legacy client is as it was."""
    module = importlib.import_module(name)
    known = {*module.__all__, *({"logger"} if name == LEGACY else ())}
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    assert [bound for bound in bound_names(tree) if bound not in known and not bound.startswith("_")] == []


@each_module
def test_module_has_a_docstring(name):
    """Each module says in its first line what it is."""
    assert (importlib.import_module(name).__doc__ or "").strip() != ""


@each_module
def test_public_names_have_docstrings(name):
    """Each public function and class, and each public method of it, says what its caller gets."""
    missing = []
    for public, value in public_objects(name):
        if not own_docstring(value).strip():
            missing.append(public)
        if inspect.isclass(value):
            members = [member for member, _ in public_members(value)]
            missing += [
                f"{public}.{member}" for member in members if not inspect.getdoc(getattr(value, member))
            ]
    assert missing == []


def test_there_are_classes_to_check():
    """The next test is not empty."""
    assert {"deepseek_client.client.DeepSeekClient", "deepseek_client.engines.threads.WorkerPool"} <= set(
        PUBLIC_CLASSES
    )


@pytest.mark.parametrize("cls", PUBLIC_CLASSES.values(), ids=PUBLIC_CLASSES)
def test_public_class_says_who_may_call_it(cls):
    """A public class that is neither an exception nor pure data has a `Threads:` section."""
    lines = inspect.cleandoc(own_docstring(cls)).splitlines()
    assert any(line.startswith("Threads:") for line in lines), "who may call it, from which thread?"


def test_application_uses_the_public_api_alone():
    """Our application imports from the library only what any deployment may: names in `__all__`, and the version."""
    for file in sorted((ROOT / "webapp").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("deepseek_client")], (
                    file
                )
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deepseek_client"):
                # gunicorn's configuration may not load Flask: it reads .env where the extension does.
                rooms = {
                    *("deepseek_client", "deepseek_client.flask", "deepseek_client.tasks"),
                    "deepseek_client.settings_file",
                }
                if file.is_relative_to(ROOT / "webapp" / "console"):  # is a part of the library in the wheel
                    rooms |= CONSOLE_ROOMS
                assert node.module in rooms, (file, node.module)
                public = {*importlib.import_module(node.module).__all__, "__version__"}
                assert {alias.name for alias in node.names} <= public, file
