"""`python -m soak.tethered PARENT COMMAND...` becomes the command, and is sent SIGTERM when its parent is gone.

However the parent went, `kill -9` too. The kernel keeps that promise across the exec, so the command need not know.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before the promise was made
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
