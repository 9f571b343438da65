"""What `bin/serve --tasks` runs beside gunicorn: a server of its own unless there is one, and a worker.

The two processes are kept running: one that ends is started again, after a pause that doubles up to five seconds, and
each time a line on stderr says so. The keeper is told what to do over standard input, a socket whose other end the
web server's processes hold. A byte means that the settings have changed: the worker finishes its calls and is
replaced. The end of the stream, or its shutdown, means that the web has ended, however that happened: the worker ends
first, within LLM_DEADLINE_S + 5, then the server, then the keeper, at which the other end of the socket sees the end
of its stream.

The keeper is two processes. The one that does all this takes worker and server with it when it is killed (Linux); its
parent does nothing but start it again, with the same URL. If the parent is killed, its child goes on without it. A
child that ends before it has told the URL has no successor, so that a start that fails does so at once.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Protocol

from ..command_line import hold_output
from ..errors import ConfigError
from ..settings import Settings
from ..settings_file import read_env_file
from ..telemetry.testimony import run_directory
from .broker import Broker, BrokerRefusal, end_with_parent

__all__ = ["Keeper", "Kept", "keep_running", "main"]

_URL = "CELERY_BROKER_URL"
_FOLDER = "queue"
_SHORTEST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_WORKER_LEAVES_S = 10  # beyond the deadline; it leaves by itself within 5
_SERVER_LEAVES_S = 10
_EACH_S = 1.0
_ENDING = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Runs until standard input ends; what it says there first is `url` and the queue's URL, or `refused` and why.

    Threads: the main one, and no other: it forks.
    """
    hold_output()
    asked = socket.socket(fileno=os.dup(0))
    try:
        settings = Settings.from_env(env := {**read_env_file(), **os.environ})
        url = (env.get(_URL) or "").strip()
        broker = None if url else Broker(run_directory(env) / _FOLDER)
        os.environ[_URL] = broker.url if broker else url
    except (ConfigError, BrokerRefusal) as error:
        return _refuse(asked, error)
    return keep_running(functools.partial(_keep, asked, settings, broker))


def _keep(asked: socket.socket, settings: Settings, broker: Broker | None, begun: mmap.mmap) -> int:
    """Keeps worker and server until standard input ends.

    Args:
        begun: 0 in the first keeper, for whose word the one that started it waits. A later one's server may have to
            wait for the last.
    """
    is_first = not begun[0]
    try:
        process = _started(broker) if broker and is_first else None
    except BrokerRefusal as error:
        return _refuse(asked, error)
    if is_first:
        asked.sendall(f"url {os.environ[_URL]}\n".encode())
        begun[0] = 1
    servers = [Kept("the queue's server", broker.launch, process)] if broker else []
    kept = [*servers, Kept("the worker", _start_worker)]
    Keeper(asked, kept, settings.deadline_s, broker.sync if broker else None).run()
    for server in servers:
        server.end(_SERVER_LEAVES_S)
    return 0


def _refuse(asked: socket.socket, error: Exception) -> int:
    asked.sendall(f"refused {error}\n".encode())
    return 0  # gunicorn, whose child it is, would tell of another code as of a worker's


def keep_running(run: Callable[[mmap.mmap], int]) -> int:
    """Runs a function in a child, and again in another one if that ends otherwise than with 0; returns 0.

    A SIGTERM or SIGINT is passed on to the child.

    Args:
        run: called with a byte that all children share, and gives the child's exit code. The byte is 0 until a child
            sets it; one that ends before has no successor.

    Threads: the main one, and no other: it forks.
    """
    begun, is_over = mmap.mmap(-1, 1), False
    keeper = Kept("their keeper", lambda: _Fork(functools.partial(run, begun)))

    def pass_on(_number: int, _frame: object) -> None:
        nonlocal is_over
        is_over = True
        if keeper.process is not None:
            keeper.process.terminate()

    for number in _ENDING:
        signal.signal(number, pass_on)
    while not is_over:
        # pass_on() does not reach a child that has been forked already and is not yet `keeper.process`.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            pause_s = 0.0 if is_over else keeper.look()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        if keeper.process is None:
            time.sleep(pause_s)
            continue
        code = keeper.process.wait()
        if code and not is_over and not begun[0]:
            _say(f"their keeper {_how_it_ended(code)} before it had begun")
        is_over = is_over or not code or not begun[0]
    return 0


class _Process(Protocol):
    """What of subprocess.Popen is used here."""

    def poll(self) -> int | None:
        """The exit code, less than 0 for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""

    def terminate(self) -> None:
        """Sends SIGTERM."""

    def kill(self) -> None:
        """Sends SIGKILL."""


class _Fork:
    """A child that has all of this process, and runs a function; SIGTERM and SIGINT end it, also if blocked here.

    Threads: one.
    """

    def __init__(self, run: Callable[[], int]) -> None:
        self._code: int | None = None
        self._pid = os.fork()
        if not self._pid:
            code = 1
            try:
                for number in _ENDING:
                    signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
                code = run()
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        """As subprocess.Popen's."""
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """As subprocess.Popen's, but for the timeout."""
        while (code := self._wait(0)) is None:
            pass
        return code

    def terminate(self) -> None:
        """As subprocess.Popen's; also from a signal's handler."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """As subprocess.Popen's."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        # Without a look at it, which would take its end from a `wait` that the handler interrupts.
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def _wait(self, options: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self._pid, options)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


class Kept:
    """A process that is started again when it has ended.

    Attributes:
        process: the one that runs; None while there is none.

    Args:
        name: what the lines on stderr call it.
        start: starts one.
        process: one that runs already.
        clock: seconds that never go back.

    Threads: one.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], _Process],
        process: _Process | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.process = process
        self._name, self._start, self._clock = name, start, clock
        self._started_at = self._due_at = clock()
        self._pause_s = _SHORTEST_PAUSE_S
        self._is_replaced = False

    def look(self) -> float:
        """Starts a process if that is due; returns the seconds until it is, or a long time while one runs."""
        if self.process is not None and (code := self.process.poll()) is not None:
            self._has_ended(_how_it_ended(code))
        if self.process is None and self._clock() >= self._due_at:
            self._started_at, self._is_replaced = self._clock(), False
            try:
                self.process = self._start()
            except OSError as error:  # no memory for a process, no folder for its log
                self._has_ended(f"cannot be started ({error})")
        return _LONGEST_PAUSE_S if self.process else max(0.0, self._due_at - self._clock())

    def replace(self) -> None:
        """Asks the process to end, so that `look()` starts another one."""
        if self.process is not None:
            self._is_replaced = True
            self.process.terminate()

    def end(self, limit_s: float) -> None:
        """Asks the process to end and waits for it, then kills it."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _say(f"{self._name} has not ended within {limit_s:g} s and is killed")
            self.process.kill()
            self.process.wait()

    def _has_ended(self, what: str) -> None:
        self.process = None
        now = self._clock()
        if self._is_replaced:
            self._due_at = now
            return
        if now - self._started_at > 2 * _LONGEST_PAUSE_S:
            self._pause_s = _SHORTEST_PAUSE_S
        self._due_at = now + self._pause_s
        _say(f"{self._name} {what}: starting it again in {self._pause_s:g} s")
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


class Keeper:
    """Keeps processes until the other end of a socket tells it to end, or a SIGTERM does; then ends the last one.

    Args:
        asked: the socket.
        kept: the last one is the worker, which is replaced at a byte and ended first.
        deadline_s: how long a worker's call may take.
        each_second: called about once in a second; None for nothing.

    Threads: the main one, whose signals it takes.
    """

    def __init__(
        self,
        asked: socket.socket,
        kept: list[Kept],
        deadline_s: float,
        each_second: Callable[[], None] | None = None,
    ) -> None:
        self._asked, self._kept, self._deadline_s = asked, kept, deadline_s
        self._each_second, self._called_at = each_second, time.monotonic()
        self._is_over = False

    def run(self) -> None:
        """Returns when the worker has ended; what else is kept still runs."""
        woken, waker = socket.socketpair()
        with woken, waker:
            woken.setblocking(False)
            waker.setblocking(False)
            former = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
            signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
            for number in _ENDING:
                signal.signal(number, self._told_to_end)
            while not self._is_over:
                pause_s = min(kept.look() for kept in self._kept)
                self._wait(woken, min(pause_s, self._call_each_second()))
            signal.set_wakeup_fd(former)
        self._kept[-1].end(self._deadline_s + _WORKER_LEAVES_S)

    def _call_each_second(self) -> float:
        """The seconds until the next call is due."""
        if self._each_second is None:
            return _LONGEST_PAUSE_S
        if time.monotonic() - self._called_at >= _EACH_S:
            self._each_second()
            self._called_at = time.monotonic()
        return max(0.0, self._called_at + _EACH_S - time.monotonic())

    def _told_to_end(self, _number: int, _frame: object) -> None:
        self._is_over = True

    def _wait(self, woken: socket.socket, pause_s: float) -> None:
        """Waits for a signal, which may tell that a process has ended, for the other end, or so many seconds."""
        ready, _, _ = select.select([self._asked, woken], [], [], pause_s)
        if woken in ready:
            woken.recv(4096)
        if self._asked in ready:
            try:
                told = self._asked.recv(4096)
            except OSError:
                told = b""
            if told:
                self._kept[-1].replace()
            else:
                self._is_over = True


def _started(broker: Broker) -> subprocess.Popen[bytes]:
    try:
        process = broker.launch()
    except OSError as error:  # no memory for a process, no folder for its log
        raise BrokerRefusal(f"the queue's server cannot be started: {error}") from error
    broker.wait_until_ready(process)
    return process


def _start_worker() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "deepseek_client", "worker"]
    ends = functools.partial(end_with_parent, os.getpid())
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=ends)


def _how_it_ended(code: int) -> str:
    return f"has ended by signal {-code}" if code < 0 else f"has ended with {code}"


def _say(line: str) -> None:
    print(f"tasks: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
