"""gunicorn's own queue: connections that the kernel has accepted for it and no worker has taken."""

from __future__ import annotations

from pathlib import Path

__all__ = ["waiting_connections"]

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN = "0A"


def waiting_connections(port: int) -> int | None:
    """Returns how many wait at this port now; None where nobody listens, or the system does not tell.

    Threads: any.
    """
    wanted, found = f":{port:04X}", None
    for table in _TABLES:
        try:
            with table.open() as lines:
                next(lines, None)
                for line in lines:
                    # sl local_address rem_address st tx_queue:rx_queue ...: listeners come first.
                    _, local, _, state, queues, *_ = line.split(None, 5)
                    if state != _LISTEN:
                        break
                    if local.endswith(wanted):
                        found = (found or 0) + int(queues.rpartition(":")[2], 16)
        except OSError:
            continue
    return found
