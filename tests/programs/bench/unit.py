"""One measured unit: `python -m bench.unit SPEC` takes a unit of the plan as JSON and prints its figures as JSON.

A process of its own: no peer's modules, threads, connections or memory are there when another is measured.
"""

from __future__ import annotations

import importlib
import json
import sys

_MODULES = {
    "a": "calls",
    "b": "calls",
    "c": "routes",
    "d": "servers",
    "e": "deadlines",
    "f": "ceiling",
    "streams": "streams",
    "tasks": "tasks",
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    module = importlib.import_module(f"bench.{_MODULES[spec['part']]}")
    print(json.dumps(module.measure(spec)))


if __name__ == "__main__":
    main()
