"""The JSON object in a model's text: all of the text, or what a Markdown fence holds."""

from __future__ import annotations

import json
import re
from typing import Any

from .errors import BadReply

__all__ = ["object_in"]


def object_in(content: str) -> dict[str, Any]:
    """The JSON object that a model's text holds: the whole text, or else the only one in it, in a Markdown fence.

    Raises:
        BadReply: there is none, or there are several.
    """
    text = content.strip("\ufeff \t\r\n")
    found = _json_object(text)
    if found is None:
        found = _json_object(_fenced(text))
    if found is None:
        raise BadReply(
            "The API answered with text that is not the JSON object that was asked for.", is_completion=True
        )
    return found


# A brace, or braces around mere words, as in "the {intent} form". No object gets as far as a player's text within
# those: it needs a quote, a colon or a line break before.
_BRACES = re.compile(r"\{[\w.][\w ,.]*\}|[{}]")


def _fenced(text: str) -> str:
    """All from the first brace to the last one, if a fence that starts a line is around it; "" without one.

    A player's own words may hold a fence with an object in it. They come back as a value in another object: behind a
    brace and its key, and before a quote and a brace. So a brace counts even if it is closed, which the player could
    do, too. Only those around mere words do not; an object has such words nowhere but in its strings.
    No expression looks for both ends of a fence, which takes hours for a text that is full of them.
    """
    first, last = -1, 0
    for found in _BRACES.finditer(text):  # one by one: a `sub` would hold the GIL for the whole text
        if found[0] == "{" and first < 0:
            first = found.start()
        elif found[0] == "}":
            last = found.end()
    opening = text[:first].rstrip().rpartition("\n")[2] if 0 <= first < last else ""
    closing = text[last:].lstrip().partition("\n")[0]
    is_fenced = re.fullmatch(r"[ \t]*```[\w+-]*", opening) and re.fullmatch(r"```[ \t\r]*", closing)
    return text[first:last] if is_fenced else ""


def _json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that the text is; None when it is something else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
