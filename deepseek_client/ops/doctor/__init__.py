"""Reads the settings and says what will hurt, before it hurts. bin/doctor runs it, and bin/serve at its start.

Nothing is asked of the network and nothing is changed.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain

from deepseek_client.telemetry import logs

from .finding import LEVELS, Finding
from .serving import examine_serving
from .situation import Situation, read
from .sources import SECRETS, examine_sources, refusals
from .upstream import examine_upstream

__all__ = ["Finding", "Situation", "examine", "read"]


def examine(situation: Situation) -> list[Finding]:
    """What will hurt in this situation, the worst first, and no key or token in it, wherever that was put."""
    parts = (refusals, examine_serving, examine_upstream, examine_sources)
    found = chain.from_iterable(part(situation) for part in parts)
    return [
        _masked(finding, situation) for finding in sorted(found, key=lambda each: LEVELS.index(each.level))
    ]


def _masked(finding: Finding, situation: Situation) -> Finding:
    values = [
        source.get(name, "").strip() for name in SECRETS for source in (situation.process, situation.file)
    ]
    mask = logs.masking(values)
    return Finding(**{name: mask(text) for name, text in asdict(finding).items()})
