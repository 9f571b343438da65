"""The rollback switch: .env, a reload, and the proof that every worker runs in the mode that .env says.

Nothing in here imports the application: what may be broken is loaded in a process of its own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from ..deployment import Server
from ..env_file import VARIABLE, EnvFile
from ..refusal import Refusal
from .rehearsal import rehearse
from .survey import Survey, ask

__all__ = ["main"]

_BEFORE_S = 3.0
"""How long workers may take to say how it was before; a rollback cannot wait for those that are busy."""
_MARGIN_S = 10.0
"""What new workers may need to start on a busy machine, beside the time that old ones are given."""
_WORDS = {True: "enabled", False: "disabled", None: "wrong"}
_OFF = ("0", "false", "no", "off")
_ANSWERS = {**_WORDS, None: "did not answer"}


def main(verb: str, wait_s: float | None = None) -> int:
    """Runs the command for the deployment in the current directory; prints, and returns the exit code.

    Args:
        verb: "enable", "disable" or "status".
        wait_s: how long workers may take to answer and to leave; None: gunicorn's graceful_timeout and a margin.

    Threads: the main one; a second process that would change something is refused meanwhile.
    """
    # python-dotenv would name each odd line of .env, at each reading.
    logging.getLogger("dotenv").setLevel(logging.ERROR)
    try:
        if verb == "status":
            return _status(wait_s)
        with _alone():
            return _switch(verb == "enable", wait_s)
    except Refusal as refusal:
        print(f"toggle-async: {refusal}", file=sys.stderr)
        return refusal.exit_code


class _Deployment:
    """.env and the server that reads it."""

    def __init__(self, env_file: EnvFile, value: str, wait_s: float | None) -> None:
        """Finds the server, and makes sure that it could reload; `value` as for `rehearse`."""
        self.env_file = env_file
        self.server = Server(_port(env_file))
        self.why_deaf = self.server.why_deaf()
        if self.why_deaf and value:
            raise Refusal(self.why_deaf)
        self._host, self._port, graceful_s = rehearse(self.server.environ, value)
        self.wait_s = wait_s or graceful_s + _MARGIN_S

    def ask(self, is_enough: Callable[[dict[int, bool]], bool], wait_s: float) -> Survey:
        """The modes that the workers report."""
        token = {**self.env_file.values, **self.server.environ}.get("WEB_API_TOKEN") or ""
        at_once = max(1, 2 * len(self.server.workers()))
        return ask(self._host, self._port, token.strip(), at_once, is_enough, wait_s)

    def have_all_answered(self, modes: Collection[int]) -> bool:
        """Whether the workers of this moment are among those that answered."""
        return self.server.workers() <= set(modes)


def _status(wait_s: float | None) -> int:
    env_file = EnvFile()
    mode = _mode_in(env_file)
    print(_described(env_file), flush=True)
    deployment = _Deployment(env_file, "", wait_s)
    survey = deployment.ask(deployment.have_all_answered, deployment.wait_s)
    workers = deployment.server.workers()
    print(_reported(workers, survey))
    if workers and {survey.modes.get(pid) for pid in workers} == {mode}:
        if deployment.why_deaf:
            print(f"but enable and disable are refused: {deployment.why_deaf}")
        return 0
    raise Refusal(
        deployment.why_deaf
        or (survey.trouble if not deployment.have_all_answered(survey.modes) else "")
        or f"the workers do not do what .env says: {'enable' if mode else 'disable'} makes them"
    )


def _switch(wanted: bool, wait_s: float | None) -> int:
    env_file = EnvFile()
    value = str(int(wanted))
    deployment = _Deployment(env_file, value, wait_s)
    server = deployment.server
    before = deployment.ask(deployment.have_all_answered, min(_BEFORE_S, deployment.wait_s))
    if before.trouble and not before.modes:
        raise Refusal(f"nothing could be proved: {before.trouble}")
    workers = server.workers()
    print(f"before: {_described(env_file)}, {_reported(workers, before)}", flush=True)
    if {_mode_in(env_file), *map(before.modes.get, workers)} == {wanted}:
        print("nothing to do: they agree")
        return 0

    env_file.write(value, server.owner())
    old = server.workers()
    try:
        server.reload()
        after = deployment.ask(_ended(server, old), deployment.wait_s)
    except Refusal:
        env_file.put_back()
        raise
    return _verdict(deployment, wanted, old, after)


def _ended(server: Server, old: set[int]) -> Callable[[dict[int, bool]], bool]:
    """A function that says whether the reload is over: all old workers gone, all new ones heard."""

    def is_over(modes: dict[int, bool]) -> bool:
        workers = server.workers()
        is_replaced = bool(workers) and not workers & old and workers <= modes.keys()
        return is_replaced or not server.is_alive()

    return is_over


def _verdict(deployment: _Deployment, wanted: bool, old: set[int], after: Survey) -> int:
    server, env_file = deployment.server, deployment.env_file
    workers = server.workers()
    new = workers - old
    wrong = {pid for pid in new if after.modes.get(pid) is (not wanted)}
    silent = new - after.modes.keys()
    reasons = []
    if not server.is_alive():
        reasons = ["the server ended during the reload, its log says why"]
    elif not new:
        reasons = [f"no new worker started within {deployment.wait_s:g} s"]
    if wrong:
        reasons += [f"{_named(wrong)} started with the old mode: something freezes it or comes before .env"]
    if silent:
        why = f" ({after.trouble})" if after.trouble else ""
        reasons += [f"{_named(silent)} did not answer within {deployment.wait_s:g} s{why}"]
    if workers & old:
        reasons += [f"old {_named(workers & old)} did not leave within {deployment.wait_s:g} s"]
    # A worker that is too busy to answer has read .env all the same.
    stays = new > wrong
    if reasons and not stays:
        reasons += [".env is as it was" if env_file.put_back() else f"see {env_file.backup} for the old .env"]
    print(f"after:  {_described(env_file)}, {_reported(workers, after)}", flush=True)
    if reasons:
        raise Refusal("; ".join(reasons))
    return 0


def _port(env_file: EnvFile) -> int:
    text = ({**env_file.values, **os.environ}.get("PORT") or "").strip() or "5000"
    if not (re.fullmatch("[0-9]{1,9}", text) and 1 <= int(text) <= 65535):
        raise Refusal(f"PORT={text!r}: need a whole number from 1 to 65535", exit_code=2)
    return int(text)


def _mode_in(env_file: EnvFile) -> bool | None:
    """The mode that .env asks for, by the words that `Settings` knows; None if its value is none of them."""
    word = (env_file.values.get(VARIABLE) or "").strip().lower()
    return True if word in ("", "1", "true", "yes", "on") else False if word in _OFF else None


def _described(env_file: EnvFile) -> str:
    value = env_file.values.get(VARIABLE)
    return f".env {_WORDS[_mode_in(env_file)]} ({VARIABLE} {f'is {value!r}' if value else 'not set'})"


def _reported(workers: set[int], survey: Survey) -> str:
    answers = {pid: survey.modes.get(pid) for pid in sorted(workers)}
    groups = {mode: [pid for pid in answers if answers[pid] is mode] for mode in (True, False, None)}
    texts = [f"{_named(pids)} {_ANSWERS[mode]}" for mode, pids in groups.items() if pids]
    return ", ".join(texts) or "no worker"


def _named(workers: Collection[int]) -> str:
    return f"worker{'s' * (len(workers) > 1)} {' '.join(map(str, sorted(workers)))}"


@contextmanager
def _alone() -> Iterator[None]:
    directory = os.open(".", os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(directory)
        raise Refusal("another toggle-async is at work here") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(directory)
