"""The tables of the documents, held against the code; those of the settings are in test_docs."""

import inspect
import os
import re
from dataclasses import replace

import pytest
from support.documents import DEPLOYMENT, LIBRARY, ROOT, codes_in, tables

import deepseek_client
from deepseek_client import __main__, errors
from deepseek_client.flask import DeepSeek
from deepseek_client.telemetry import metrics
from deepseek_client.telemetry.metric_values import Values
from webapp.app import create_app


def subcommands():
    """Those of deepseek-client."""
    [action] = [
        action for action in __main__._parser()._actions if hasattr(action, "choices") and action.choices
    ]
    return list(action.choices)


def test_table_of_errors():
    """Each error has its row, with its code, its HTTP status and whether it is tried again."""
    kinds = {name: getattr(errors, name) for name in errors.__all__ if name != "DeepSeekError"}
    rows = {codes_in(row[0])[0]: row for row in tables(LIBRARY)["class"]}
    assert sorted(rows) == sorted(kinds)
    for name, (_, code, status, when, billed, again) in rows.items():
        kind = kinds[name]
        known = (getattr(kind, "code", ""), str(getattr(kind, "http_status", "")))
        assert (code.strip("`"), status) == known
        assert (again != "no") is getattr(kind, "retryable", False)
        assert when
        assert billed


def test_table_of_names():
    """Each public name has its row in the table, or is an error."""
    rows = [codes_in(row[0])[0] for row in tables(LIBRARY)["name"]]
    assert sorted([*rows, *errors.__all__]) == sorted(deepseek_client.__all__)


def test_table_of_switches():
    """The extension's keywords and their defaults are those of its signature."""
    parameters = inspect.signature(DeepSeek).parameters
    known = {name: repr(parameters[name].default) for name in parameters if name != "app"}
    rows = {codes_in(row[0])[0]: codes_in(row[1])[0].replace('"', "'") for row in tables(LIBRARY)["keyword"]}
    assert rows == known


def test_table_of_metrics():
    """Each metric has its row, with its labels."""
    families = {family.name: family for family in metrics._Metrics(Values()).families}
    known = {
        family.name.removesuffix("_total") + ("_total" if family.kind == "counter" else ""): list(
            family.labels
        )
        for family in families.values()
    }
    rows = {
        name: codes_in(labels)
        for names, labels, _ in tables(DEPLOYMENT)["metric"]
        for name in codes_in(names)
    }
    assert rows == known


def test_table_of_alerts():
    """Each alert has its row, with its severity."""
    text = (ROOT / "webapp" / "monitoring" / "alerts.yml").read_text(encoding="utf-8")
    known = dict(re.findall(r"- alert: (\w+)\n.*?severity: (\w+)", text, re.DOTALL))
    assert {codes_in(name)[0]: severity for name, severity, _ in tables(DEPLOYMENT)["alert"]} == known


def test_table_of_routes(settings):
    """The HTTP API's table has the application's routes and their methods."""
    known = {
        f"{method} {rule.rule}"
        for rule in create_app(settings).url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert {code for row in tables(DEPLOYMENT)["route"] for code in codes_in(row[0])} == known


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        ({"path": "/nowhere"}, "not_found"),
        ({"path": "/api/llm/batch", "method": "GET"}, "method_not_allowed"),
        ({"path": "/api/llm/chat", "method": "POST", "data": b"x" * 1024 * 1025}, "invalid_request"),
        ({"path": "/api/llm/status"}, "unauthorized"),
    ],
    ids=["404", "405", "413", "401"],
)
def test_table_of_further_statuses(settings, ask, code):
    """What the HTTP API answers besides failed calls is as the table says."""
    rows = {}
    for statuses, codes, _ in tables(DEPLOYMENT)["status"]:
        rows.update(zip(statuses.split(", "), codes_in(codes), strict=True))
    guarded = replace(settings, web_api_token="a-token" if code == "unauthorized" else "")
    answer = create_app(guarded).test_client().open(**ask)
    assert rows[str(answer.status_code)] == answer.get_json()["code"] == code


def test_table_of_commands():
    """The tables have each command of `deepseek-client` and of `bin/`."""
    rows = [
        code
        for document in (LIBRARY, DEPLOYMENT)
        for row in tables(document)["command"]
        for code in codes_in(row[0])
    ]
    programs = [
        f"bin/{file.name}" for file in (ROOT / "bin").iterdir() if os.access(file, os.X_OK) and file.is_file()
    ]
    known = [f"deepseek-client {name}" for name in subcommands()]
    assert sorted(rows) == sorted([*programs, *known])
