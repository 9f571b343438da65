"""The routes that take a body, and what makes parameters of them and of a table's cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

CHATS = [("POST", "/api/llm/chat"), ("GET", "/api/llm/chat"), ("POST", "/api/llm/chat/sync")]
PARSES = [("POST", "/api/llm/parse"), ("POST", "/api/llm/parse/sync")]
ALL = [*CHATS, *PARSES, ("POST", "/api/llm/batch")]


def table(cases: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    """The cases as parameters, with their names as ids."""
    return [pytest.param(*case, id=name) for name, case in cases.items()]


def over(routes: Sequence[tuple[str, str]]) -> pytest.MarkDecorator:
    """Runs a test for each of the routes."""
    ids = [f"{method}_{path.removeprefix('/api/llm/').replace('/', '_')}" for method, path in routes]
    return pytest.mark.parametrize("route", routes, ids=ids)
