"""Medians, spreads and ratios of what the rounds gave."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["Figures", "Spread"]

_KEYS = ("part", "peer", "width")
_NOT_MEASURED = {*_KEYS, "round", "upstream", "count", "error"}


class Spread(NamedTuple):
    """The median of the rounds, the least and the most of them, and how many they were."""

    median: float
    low: float
    high: float
    rounds: int


class Figures:
    """The records of a run, by part, peer and width."""

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        self.records = list(records)
        self._by_cell: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
        for record in self.records:
            if "error" not in record:
                cell = tuple(record.get(key) for key in _KEYS)
                self._by_cell.setdefault(cell, {})[record["round"]] = record

    def of(self, name: str, part: str, peer: str, width: int | None = None) -> Spread | None:
        """What the rounds gave for a cell of a table; None when there was no good round."""
        rounds = self._by_cell.get((part, peer, width), {})
        return _spread([record[name] for record in rounds.values()])

    def ratio(self, name: str, part: str, ours: str, theirs: str, width: int | None = None) -> Spread | None:
        """Ours through theirs, in each round by itself: what the machine did in a round hits both."""
        mine, others = (self._by_cell.get((part, peer, width), {}) for peer in (ours, theirs))
        return _spread([mine[turn][name] / others[turn][name] for turn in mine if turn in others])

    def ratio_above(self, name: str, part: str, base: str, ours: str, theirs: str) -> Spread | None:
        """The same for what ours and theirs add to the base."""
        cells = [self._by_cell.get((part, peer, None), {}) for peer in (base, ours, theirs)]
        rounds = [
            [cell[turn][name] for cell in cells] for turn in cells[0] if all(turn in cell for cell in cells)
        ]
        return _spread([(mine - least) / (other - least) for least, mine, other in rounds if other != least])

    def widths(self, part: str) -> list[int]:
        """Those that a part was measured at, the least first."""
        return sorted({width for found, _, width in self._by_cell if found == part and width is not None})

    def peers(self, part: str) -> list[str]:
        """Those of a part, in the order of its first round."""
        return list(dict.fromkeys(record["peer"] for record in self.records if record["part"] == part))

    def failures(self) -> list[str]:
        """A line for each unit that gave no figures."""
        return [
            f"part {record['part']}, {record['peer']}, width {record.get('width', '-')}, "
            f"round {record['round'] + 1}: {record['error']}"
            for record in self.records
            if "error" in record
        ]

    def unanswered(self) -> list[str]:
        """A line for each unit some of whose calls failed; they count as calls that were not made."""
        return [
            f"part {record['part']}, {record['peer']}, width {record.get('width', '-')}, "
            f"round {record['round'] + 1}: {record['failed']} of {record['count']} calls"
            for record in self.records
            if record.get("failed")
        ]

    def medians(self) -> list[dict[str, Any]]:
        """Every cell with the spread of each of its figures, for machines."""
        cells = []
        for cell, rounds in self._by_cell.items():
            names = [name for name in next(iter(rounds.values())) if name not in _NOT_MEASURED]
            spreads = {name: _spread([record[name] for record in rounds.values()]) for name in names}
            figures = {name: spread._asdict() for name, spread in spreads.items() if spread}
            cells.append({**dict(zip(_KEYS, cell, strict=True)), **figures})
        return cells


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))
