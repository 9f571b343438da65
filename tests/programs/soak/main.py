"""One run from its start to its table."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import report
from .application import running_application
from .arguments import Options
from .disk import running_disk
from .load import Clients
from .plan import plan_of
from .processes import SoakError
from .progress import Progress
from .soaking import Soaking
from .upstream import running_upstream
from .verdict import judge

__all__ = ["main"]


def main(options: Options) -> int:
    """The exit code: 0 all is as it was, 1 something is not, the run failed or the file could not be written."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)  # as Ctrl-C: everything is stopped on the way out
    plan = plan_of(options.minutes)
    progress = Progress(sys.stderr, plan[-1].ends_s)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="soak-") as folder,
            running_upstream(Path(folder), options.seed) as upstream,
            running_disk(Path(folder)) as disk,
            running_application(upstream, disk) as application,
        ):
            clients = Clients(application.address, options.seed)
            soaking = Soaking(plan, upstream, application, disk, clients, progress.show)
            try:
                soaking.run()
            finally:
                clients.stop()
                progress.close()
            exit_code = application.end()
    except SoakError as exc:
        return _fail(str(exc))
    tally = clients.tally
    rows = judge(soaking.rests, tally.outcomes, application.log.tracebacks, exit_code)
    details = [*tally.wrong, *application.log.first_traceback]
    if not disk.is_small:
        details.insert(0, "The disk never was full: to mount a small one needs root.")
    print(report.text_of(rows, soaking.rests, tally.outcomes, details))
    if options.json:
        content = report.content_of(rows, soaking.rests, soaking.moments, tally.outcomes, details)
        try:
            _write(options.json, {"minutes": options.minutes, "seed": options.seed, **content})
        except OSError as exc:
            return _fail(f"cannot write the file: {exc}")
    return 0 if all(row.is_fine for row in rows) else 1


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _write(path: str, content: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")


def _fail(message: str) -> int:
    print(f"soak: {message}", file=sys.stderr)
    return 1
