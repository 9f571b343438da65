"""The rollback switch: .env, a reload, and the proof that every worker runs in the mode that .env says.

Nothing in here imports the application: what may be broken is loaded in a process of its own. No worker is asked, so
a busy one is not waited for: each has testified for itself.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..deployment import Deployment, Server, Worker
from ..env_file import VARIABLE, EnvFile
from ..refusal import Refusal
from . import report

__all__ = ["main"]

_MARGIN_S = 10.0
"""What new workers may need to start on a busy machine, beside the time that old ones are given."""
_TICK_S = 0.05
_QUIET_S = 2.0  # a wait that is longer shows how far it is
_LOCK = "toggle.lock"


def main(verb: str, wait_s: float | None = None, pid: int | None = None) -> int:
    """Runs the command for the deployment in the current directory; prints, and returns the exit code.

    Args:
        verb: "enable", "disable" or "status".
        wait_s: how long workers may take to start and to leave; None: gunicorn's graceful_timeout and a margin.
        pid: the gunicorn master that is meant; None for all that serve the directory.

    Threads: the main one; a second process that would change something is refused meanwhile.
    """
    # python-dotenv would name each odd line of .env, at each reading.
    logging.getLogger("dotenv").setLevel(logging.ERROR)
    try:
        deployment = Deployment(EnvFile().values)
        is_down = not (
            deployment.servers or deployment.silent or deployment.others or deployment.doubts or pid
        )
        if verb != "status" and is_down and os.path.isdir(deployment.directory):
            with _alone(deployment.directory):
                return _switch_what_is_down("1" if verb == "enable" else "0")
        servers = _chosen(deployment, pid)
        if verb == "status":
            return _status(deployment, servers)
        with _alone(deployment.directory):
            return _switch(deployment, servers, verb == "enable", wait_s)
    except Refusal as refusal:
        print(f"toggle: {refusal}", file=sys.stderr)
        return refusal.exit_code


def _chosen(deployment: Deployment, pid: int | None) -> list[Server]:
    """The servers that are meant.

    Raises:
        Refusal: nothing runs here, or it is being replaced.
    """
    servers = [server for server in deployment.servers if pid in (None, server.pid)]
    silent = [each for each in deployment.silent if pid in (None, each)]
    if silent and not servers and (pid is not None or not deployment.others):
        raise Refusal("; ".join(report.of_silent(silent, deployment.directory)))
    if pid is not None and not servers:
        known = ", ".join(str(server.pid) for server in deployment.servers) or "none"
        raise Refusal(f"process {pid} is no gunicorn that serves this directory (those that are: {known})")
    if not servers and not deployment.others:
        nobody = f"no application with DeepSeek(app) has testified in {deployment.directory}, or none could"
        raise Refusal(f"nothing runs here: {next(iter(deployment.doubts), nobody)}")
    for server in servers:
        if successor := server.successor():
            raise Refusal(
                f"process {successor} is taking over from {server.pid} (USR2): end one of them first"
            )
        if not server.workers():
            raise Refusal(f"gunicorn {server.pid} has no worker, so that nothing can be proved")
    return servers


def _status(deployment: Deployment, servers: list[Server]) -> int:
    env_file = EnvFile()
    told = _told(servers)
    lines = [report.in_env(env_file), *report.of_each(told), *_of_the_rest(deployment)]
    print(*lines, sep="\n", flush=True)
    ineffective = _why_ineffective(servers)
    if _agree(env_file, deployment, told):
        if ineffective:
            print(f"but enable and disable are refused: {ineffective}")
        for server in servers:
            if server.is_preloaded():
                print(
                    f"gunicorn {server.pid} was started with preload: enable and disable wait for its next start"
                )
        return 0
    if None in told.values():
        raise Refusal(
            f"not every worker has testified in {deployment.directory}: it does so at its next request,"
            " or its log says why"
        )
    if ineffective:
        raise Refusal(ineffective)
    mode = report.mode_in(env_file)
    reasons = [report.of_preloaded(server) for server in servers if server.command.options()["preload_app"]]
    if not reasons and any(said and said.mode != mode for said in told.values()):
        verb = "disable" if mode == "sync" else "enable"
        reasons = [f"the workers do not do what .env says: {verb} makes them"]
    reasons += report.of_deaf([other for other in deployment.others if other.mode != mode])
    raise Refusal("; ".join(reasons))


def _switch(deployment: Deployment, servers: list[Server], is_enable: bool, wait_s: float | None) -> int:
    env_file = EnvFile()
    wanted, value = ("async", "1") if is_enable else ("sync", "0")
    told = _told(servers)
    before = [
        f"before: {report.in_env(env_file)}, {report.summary(told)}",
        *_of_the_rest(deployment),
    ]
    if report.mode_in(env_file) == wanted and _agree(env_file, deployment, told):
        print(*before, "nothing to do: they agree", sep="\n")
        return 0
    if ineffective := _why_ineffective(servers):
        raise Refusal(ineffective)
    options = {server: _rehearse(server, value) for server in servers}
    print(*before, sep="\n", flush=True)

    frozen = [server for server in servers if options[server]["preload_app"]]
    reloaded = [server for server in servers if server not in frozen]
    graceful_s = max([float(options[server]["graceful_timeout"]) for server in reloaded], default=0.0)
    wait_s = wait_s or graceful_s + _MARGIN_S
    env_file.write(value, servers[0].owner() if servers else (os.getuid(), os.getgid()))
    old = {worker for server in reloaded for worker in server.workers()}
    _reload(reloaded, env_file)
    _wait(reloaded, old, wait_s)

    reasons, is_taken = report.failures(reloaded, _told(reloaded), old, wanted, wait_s)
    if reasons and not is_taken:
        reasons.append(
            ".env is as it was" if env_file.put_back() else f"see {env_file.backup} for the old .env"
        )
    print(f"after:  {report.in_env(env_file)}, {report.summary(_told(servers))}", flush=True)
    reasons += [report.of_preloaded(server) for server in frozen]
    reasons += report.of_deaf(deployment.others)
    if reasons:
        raise Refusal("; ".join(reasons))
    return 0


def _switch_what_is_down(value: str) -> int:
    """A server that fails at its start is what a rollback is for: what starts next obeys."""
    env_file = EnvFile()
    env_file.write(value, (os.getuid(), os.getgid()))
    raise Refusal(
        f"nothing runs here, so that nothing is proved: {report.in_env(env_file)} from the next start on"
    )


def _of_the_rest(deployment: Deployment) -> list[str]:
    return [
        *report.of_others(deployment.others),
        *report.of_silent(deployment.silent, deployment.directory),
    ]


def _told(servers: Sequence[Server]) -> report.Told:
    return {worker: said for server in servers for worker, said in server.told().items()}


def _agree(env_file: EnvFile, deployment: Deployment, told: report.Told) -> bool:
    said = [*told.values(), *deployment.others]
    return {each.mode if each else None for each in said} == {report.mode_in(env_file)}


def _why_ineffective(servers: Sequence[Server]) -> str:
    return next(filter(None, (server.why_reload_is_ineffective() for server in servers)), "")


def _rehearse(server: Server, value: str) -> Mapping[str, Any]:
    """Tries what a reload would do, and returns gunicorn's options.

    Raises:
        Refusal: it would end the server, or have no effect.
    """
    options = server.command.rehearse(**{VARIABLE: value})
    if any(str(each).startswith(f"{VARIABLE}=") for each in options.get("raw_env") or ()):
        raise Refusal(f"gunicorn's configuration sets {VARIABLE} in raw_env, which comes before .env")
    return options


def _reload(servers: Sequence[Server], env_file: EnvFile) -> None:
    for number, server in enumerate(servers):
        try:
            server.reload()
        except Refusal:
            if number == 0:
                env_file.put_back()
            raise


def _wait(servers: Sequence[Server], old: Collection[Worker], wait_s: float) -> None:
    """Waits until all old workers are gone and all new ones have testified, or the time is over."""
    started_at = time.monotonic()
    is_shown = False
    while (waited_s := time.monotonic() - started_at) < wait_s:
        if all(_is_over(server, old) for server in servers):
            break
        if waited_s > _QUIET_S and sys.stderr.isatty():
            is_shown = True
            left = sum(len(server.workers() & {*old}) for server in servers)
            print(
                f"\r{waited_s:.0f} of {wait_s:.0f} s, old workers left: {left} ",
                end="",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(_TICK_S)
    if is_shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _is_over(server: Server, old: Collection[Worker]) -> bool:
    told = server.told()
    is_replaced = bool(told) and not told.keys() & old and None not in told.values()
    return is_replaced or not server.is_alive()


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keeps a second switch away, by a file that only the server's user can open."""
    try:
        lock = _lock_file(directory)
    except OSError as error:
        reason = f"cannot lock {directory}: {error.strerror}"
        raise Refusal(f"{reason}: run this as the server's user, or as root") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Refusal("another toggle is at work here") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(lock)


def _lock_file(directory: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        lock = os.open(directory / _LOCK, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(directory / _LOCK, flags)
    owner = os.stat(directory)  # root may have made it
    if os.geteuid() != owner.st_uid:
        os.fchown(lock, owner.st_uid, owner.st_gid)
    return lock
