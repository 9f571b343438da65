"""gunicorn's own queue, as the kernel tells it."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest

from webapp.console.listening import waiting_connections

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="reads /proc/net/tcp")


def test_connections_that_nobody_takes_are_counted():
    """Each connection that waits at a port counts, until it is taken."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        assert waiting_connections(port) == 0
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert waiting_connections(port) == 3
        listener.accept()[0].close()
        assert waiting_connections(port) == 2


def test_port_where_nobody_listens():
    """A port that is not listened at has no queue, which is not the same as an empty one."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert waiting_connections(unused.getsockname()[1]) is None
