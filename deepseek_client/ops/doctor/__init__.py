"""Reads the settings and says what will hurt, before it hurts; `deepseek-client doctor`, and bin/serve at its start.

Nothing is asked of the network but the queue's server, nothing is changed, and neither Flask nor requests is loaded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain

from ...telemetry import logs
from .finding import LEVELS, Finding
from .queue import examine_queue
from .serving import examine_serving
from .situation import Server, Situation, read
from .sources import SECRETS, examine_sources, refusals
from .upstream import examine_upstream

__all__ = ["Finding", "Server", "Situation", "examine", "main", "read"]


def main(hosts: int = 1, as_json: bool = False) -> int:
    """Prints what will hurt in the current directory; returns 1 if something is worse than a hint.

    Args:
        hosts: how many machines serve with these settings.
        as_json: a list of objects instead of text.

    Threads: the main one.
    """
    logging.getLogger("dotenv").setLevel(logging.CRITICAL)  # what it would say is a finding
    # Servers of one directory share most of what is found.
    findings = _worst_first(dict.fromkeys(chain.from_iterable(map(examine, read(hosts)))))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        print("\n".join(map(_text, findings)) or "doctor: nothing found")
    return int(any(finding.level != "hint" for finding in findings))


def examine(situation: Situation) -> list[Finding]:
    """What will hurt in this situation, the worst first, and no key or token in it, wherever that was put."""
    parts = (refusals, examine_serving, examine_upstream, examine_queue, examine_sources)
    found = chain.from_iterable(part(situation) for part in parts)
    return _worst_first(_masked(finding, situation) for finding in found)


def _worst_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda each: LEVELS.index(each.level))


def _masked(finding: Finding, situation: Situation) -> Finding:
    values = [
        source.get(name, "").strip() for name in SECRETS for source in (situation.process, situation.file)
    ]
    mask = logs.masking(values)
    return Finding(**{name: mask(text) for name, text in asdict(finding).items()})


def _text(finding: Finding) -> str:
    return (
        f"{finding.level}: {finding.what} [{finding.code}]\n    {finding.why}\n    Remedy: {finding.remedy}"
    )
