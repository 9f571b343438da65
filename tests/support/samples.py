"""Calls that end, and the samples that a scrape shows of them."""

from __future__ import annotations

import json

from prometheus_client.parser import text_string_to_metric_families

from deepseek_client.events import CallFinished, emit


def call(
    method: str, error: str | None = None, *, mode: str = "async", waited_s: float = 0.0, ran_s: float = 0.0
) -> None:
    """One call ended."""
    emit(CallFinished(method, mode, waited_s, ran_s, error, {}, 1))


def samples(text: str, method: str) -> dict[tuple[str, str], float]:
    """The samples of one method: {(name, other labels as JSON): value}."""
    found = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            if labels.get("method") == method and not name.endswith("_created"):
                rest = {key: label for key, label in labels.items() if key != "method"}
                found[name, json.dumps(rest, sort_keys=True)] = value
    return found


def lines_of(text: bytes) -> dict[str, str]:
    """Each sample's line: {name and labels: value}."""
    return dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))
