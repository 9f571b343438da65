"""The documents, as tests read them: their headings, code blocks, tables and links."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README, CHINESE = "README.md", "README.zh-CN.md"
LIBRARY, DEPLOYMENT = "deepseek_client/README.md", "webapp/README.md"
DOCUMENTS = (README, CHINESE, LIBRARY, DEPLOYMENT, "CHANGELOG.md")

_FENCED = re.compile(r"^([ \t]*)```(\w+)[ \t]*\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) (.+)$")


class Block(NamedTuple):
    """A fenced block of a document, without a common indentation, and the heading that it stands under."""

    document: str
    heading: str
    language: str
    text: str
    line: int


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def prose_of(document: str) -> str:
    """Its text without the fenced blocks."""
    return _FENCED.sub("", text_of(document))


def headings(document: str) -> list[tuple[int, str]]:
    """Its headings in order: level, words."""
    found = [_HEADING.match(line) for line in prose_of(document).splitlines()]
    return [(len(match[1]), match[2]) for match in found if match]


def blocks(document: str, *languages: str) -> list[Block]:
    """The document's blocks in these languages, or in any, in order."""
    text = text_of(document)
    found = []
    for match in _FENCED.finditer(text):
        before = text[: match.start()]
        above = [
            heading for line in _FENCED.sub("", before).splitlines() if (heading := _HEADING.match(line))
        ]
        heading = above[-1][2] if above else ""
        found.append(Block(document, heading, match[2], textwrap.dedent(match[3]), before.count("\n") + 2))
    return [block for block in found if not languages or block.language in languages]


def tables(document: str) -> dict[str, list[list[str]]]:
    """The rows of its tables, by the words of the first cell of each head."""
    found: dict[str, list[list[str]]] = {}
    rows: list[list[str]] | None = None
    for line in [*prose_of(document).splitlines(), ""]:
        if not line.startswith("|"):
            rows = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if rows is None:
            rows = found.setdefault(cells[0], [])
        elif not set("".join(cells)) <= set("-: "):
            rows.append(cells)
    return found


def codes_in(cell: str) -> list[str]:
    """What stands in a cell between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def anchors(document: str) -> set[str]:
    """The fragments that lead to its headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") for _, words in headings(document)}
