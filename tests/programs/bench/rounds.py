"""Runs the units of a plan, each in a process of its own, one at a time, and shows how far it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .arguments import PARTS
from .upstream import clean_environment, running_sandboxes

__all__ = ["run"]

_GIVE_UP_S = 180


def run(units: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The units in their order, each with its figures, or with `error`, one line of why there are none."""
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with running_sandboxes(folder) as (urls, bundle), _bar(len(units)) as bar:
            for unit in units:
                _show(bar, unit)
                spec = {**unit, "url": urls.get(unit.get("upstream", ""), ""), "bundle": str(bundle)}
                records.append({**unit, **_figures(spec, clean_environment(bundle), folder)})
                bar.update()
    return records


def _bar(total: int) -> tqdm[Any]:
    # Without a terminal `_show` writes lines instead.
    return tqdm(total=total, unit="unit", disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True)


def _show(bar: tqdm[Any], unit: dict[str, Any]) -> None:
    unit_of_width = {"b": "at a time", "tasks": "workers"}.get(unit["part"])
    width = f", {unit['width']} {unit_of_width}" if unit_of_width and "width" in unit else ""
    what = f"{PARTS[unit['part']]}: {unit['peer']}{width}, round {unit['round'] + 1}"
    if bar.disable:
        print(f"bench: {what}", file=sys.stderr, flush=True)
    else:
        bar.set_description(what)


def _figures(spec: dict[str, Any], env: dict[str, str], folder: Path) -> dict[str, Any]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.unit", json.dumps(spec)],
        env=env,
        cwd=folder,  # where no .env is
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, complaints = process.communicate(timeout=_GIVE_UP_S)
        figures: dict[str, Any] = json.loads(output)
        return figures
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {_GIVE_UP_S} s"}
    except ValueError:
        return {"error": complaints.strip().rpartition("\n")[2] or f"exit code {process.returncode}"}
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen[str]) -> None:
    """Ends the unit, if it still runs, and the servers that it may have left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # as it should be
        pass
    process.wait()
