"""The alerts and the dashboard, held against the metrics that the code has."""

import json
import re
from pathlib import Path

import pytest

from deepseek_client import DeepSeekError, Settings, errors
from deepseek_client.telemetry import metrics
from deepseek_client.telemetry.metric_values import Values
from webapp.app import create_app

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "webapp" / "monitoring"
FAMILIES = metrics._Metrics(Values()).families
OF_PROMETHEUS = {"up": set(), "ALERTS": {"alertname", "alertstate"}}
OF_THE_SCRAPE = {"job", "instance"}
WORDS_OF_PROMQL = {
    *("sum", "by", "on", "and", "or", "unless", "offset", "rate", "increase", "absent", "vector"),
    *("histogram_quantile", "avg_over_time", "last_over_time", "max_over_time", "label_values"),
}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def read(name):
    """A file of webapp/monitoring."""
    return (MONITORING / name).read_text(encoding="utf-8")


def known_series():
    """What /metrics can show: {series: its labels}."""
    series = dict(OF_PROMETHEUS)
    for family in FAMILIES:
        for suffix in SUFFIXES[family.kind]:
            series[family.name + suffix] = {*family.labels, *({"le"} if suffix == "_bucket" else ())}
    return series


def alerts():
    """The rules of alerts.yml: {name: its text}."""
    parts = re.split(r"^ *- alert: (\w+)\n", read("alerts.yml"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def expression_of(alert):
    """What a rule's `expr: |` says."""
    [(_, text)] = re.findall(r"^( *)expr: \|\n((?:\1 +.*\n)+)", alert, re.MULTILINE)
    return text


def dashboard():
    """The dashboard."""
    return json.loads(read("dashboard.json"))


def expressions():
    """Every expression of both files, by where it stands."""
    found = {name: expression_of(text) for name, text in alerts().items()}
    board = dashboard()
    found["annotations"] = board["annotations"]["list"][0]["expr"]
    for variable in board["templating"]["list"][1:]:
        found[f"variable {variable['name']}"] = variable["definition"]
    for panel in board["panels"]:
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    return found


each_expression = pytest.mark.parametrize("expression", expressions().values(), ids=expressions())


def without_strings(expression):
    """The expression with all strings blank and without Grafana's interval."""
    return re.sub(r'"[^"]*"', '""', expression).replace("$__rate_interval", "5m")


def series_in(expression):
    """The series that an expression reads: all its names but functions, keywords and labels."""
    labels = r"\{[^}]*\}|\b(?:by|on)\s*\([^)]*\)|, (?:job|instance)\)$"
    return (
        set(re.findall(r"\b[A-Za-z_]\w*", re.sub(labels, " ", without_strings(expression)))) - WORDS_OF_PROMQL
    )


def labels_of(series):
    """The labels that a series may be asked for."""
    return known_series()[series] | OF_THE_SCRAPE


@each_expression
def test_series_exist(expression):
    """Each expression reads at least one series, and only those that the code has."""
    assert series_in(expression)
    assert series_in(expression) - set(known_series()) == set()


@each_expression
def test_labels_exist(expression):
    """A series is selected by labels that it has, and grouped by labels that one of the expression's series has."""
    bare = without_strings(expression)
    for series, matchers in re.findall(r"(\w+)\s*\{([^}]*)\}", bare):
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= labels_of(series), series
    grouped = {
        label
        for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", bare)
        for label in re.findall(r"\w+", group)
    }
    assert grouped <= set().union(*map(labels_of, series_in(expression)))


@each_expression
def test_values_of_labels_exist(expression):
    """Codes, outcomes, kinds and routes that an expression asks for are those that the code gives."""
    codes = {getattr(errors, name).code for name in errors.__all__ if name != "ClientClosed"} | {
        "cancelled",
        "unexpected",
    }
    assert DeepSeekError.code in codes
    values = {
        "code": codes,
        "outcome": codes | {"ok"},
        "kind": set(metrics._TOKENS),
        "reason": {"deadline", "cancelled", "closing"},
        "route": {rule.rule for rule in create_app(Settings()).url_map.iter_rules()} | {"unmatched"},
        "mode": {"async", "sync"},
    }
    for label, value in re.findall(r'(\w+)\s*[=!]~?\s*"([^"]*)"', expression):
        assert label not in values or set(value.split("|")) <= values[label]


@pytest.mark.parametrize("wrong", ["rate(deepsek_errors_total[5m])", "sum(rate(deepseek_errors[5m]))"])
def test_unknown_series_is_found(wrong):
    """The test above would find a name that is misspelt, or that lacks its suffix."""
    assert series_in(wrong) - set(known_series()) != set()


def test_every_metric_is_on_the_dashboard():
    """What the code measures is shown."""
    shown = set().union(
        *(series_in(target["expr"]) for panel in dashboard()["panels"] for target in panel["targets"])
    )
    names = sorted(family.name for family in FAMILIES)
    assert [name for name in names if not any(series.startswith(name) for series in shown)] == []


def test_panels_are_complete():
    """Each panel has an id of its own, a title and a description, and none covers another."""
    panels, cells = dashboard()["panels"], []
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"].endswith(".")
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        rows, columns = range(place["y"], place["y"] + place["h"]), range(place["x"], place["x"] + place["w"])
        cells += [(row, column) for row in rows for column in columns]
    assert len(set(cells)) == len(cells)


@pytest.mark.parametrize("name", alerts())
def test_alert_says_what_to_do(name):
    """Each alert has a severity, a summary of one line and a description; both render for every job alike."""
    text = alerts()[name]
    assert re.search(r"^ *severity: (critical|warning)$", text, re.MULTILINE)
    assert re.search(r'^ *summary: ".+\."$', text, re.MULTILINE)
    assert re.search(r"^ *description: >-\n(?: {12}\S.*\n){2,}", text, re.MULTILINE)


@pytest.mark.parametrize("name", alerts())
def test_alert_names_what_exists(name):
    """Settings that an alert's text names are those of .env.example, panels those of the dashboard."""
    text = " ".join(alerts()[name].partition("annotations:")[2].split())
    settings = set(
        re.findall(r"^#? ?([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert set(re.findall(r"\b(?:LLM|DEEPSEEK|WEB|USE)_[A-Z_]+", text)) <= settings
    titles = {panel["title"] for panel in dashboard()["panels"]} | {"HTTP API"}  # a section of README
    quoted = re.findall(r'"([A-Z][A-Za-z ]+)"', text.partition("description:")[2])
    assert set(quoted) <= titles


@pytest.mark.parametrize("name", alerts())
def test_alert_is_tested(name):
    """promtool's tests expect each alert to fire."""
    tests = read("alerts_test.yml") + read("alerts_day_test.yml")
    assert re.search(rf'alertname="{name}"|alertname: {name}\n', tests)
