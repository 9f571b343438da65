"""One run: load and rest in turns, and what was seen meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from . import faults
from .application import Application
from .calls import warming_chat
from .disk import Disk
from .idle import IdleClients, half_probes
from .load import Clients
from .plan import DEADLINE_S, THREADS, WORKERS, Stretch
from .processes import SoakError
from .upstream import Upstream
from .worker import Sample, least, sample_of

__all__ = ["Moment", "Rest", "Soaking"]

_TICK_S = 0.25
_LOOK_EVERY_S = 1.0
_MOMENTS_KEPT = 1000
_CALM_S = 2 * DEADLINE_S + 5  # an abandoned call may use up its deadline
_CALM_LOOKS = 3
_SAMPLES = 8
_SAMPLE_EVERY_S = 0.1
_WARM_UPS = 20
_WARM_UP_AGAIN_S = 1.0  # on a machine so busy that calls took too long, the breaker may be open for 10 s
_WARM_UP_MS = 300
_PROBES_S = 30


class Moment(NamedTuple):
    """What is seen under load; `slots`, busy and queued, is None when the server had no thread left to tell."""

    elapsed_s: float
    doing: str
    sent: int
    outcomes: Counter[str]
    sample: Sample
    slots: tuple[int, int] | None


class Rest(NamedTuple):
    """What is seen when nobody asks for anything any more.

    Attributes:
        elapsed_s: when the load before it ended.
        sent: requests so far.
        unanswered: those of them that have no outcome.
        slots: of the pool, taken; -1 when the server does not tell.
        in_flight: requests that the API still works on, as far as it knows.
    """

    elapsed_s: float
    sent: int
    unanswered: int
    pid: int
    slots: int
    in_flight: int
    sample: Sample


class Soaking:
    """Runs a plan.

    Args:
        show: is given what is seen, each second.

    Threads: one runs it; the clients are threads of their own.
    """

    def __init__(
        self,
        plan: list[Stretch],
        upstream: Upstream,
        application: Application,
        disk: Disk,
        clients: Clients,
        show: Callable[[Moment], None],
    ) -> None:
        self.moments: list[Moment] = []
        self.rests: list[Rest] = []
        self._plan = plan
        self._upstream = upstream
        self._application = application
        self._disk = disk
        self._clients = clients
        self._idle = IdleClients(application.address, clients.tally)
        self._show = show
        self._keep_every_s = plan[-1].ends_s / _MOMENTS_KEPT
        self._began = time.monotonic()
        self._pid = self._pid_now()

    def run(self) -> None:
        """Load and rest in turns.

        Raises:
            SoakError: a process is gone.
        """
        self._warm_up()
        for stretch in self._plan:
            self._load(stretch)
            self.rests.append(self._rest())

    def _warm_up(self) -> None:
        """Has every thread started that there may ever be: a pool starts one more when all are busy."""
        for path, count in (("chat/sync", THREADS), ("chat", WORKERS)):
            for _ in range(_WARM_UPS):
                self._upstream.prepare(faults.warm_up(count, _WARM_UP_MS))
                self._clients.send_together([warming_chat(path)] * count)
                if self._upstream.stats()["peak_in_flight"] >= WORKERS:
                    break
                time.sleep(_WARM_UP_AGAIN_S)
            else:
                raise SoakError(f"never were {WORKERS} calls of /api/llm/{path} under way at once")
        self._warm_up_probes()

    def _warm_up_probes(self) -> None:
        """The same for the threads that probes have to themselves: one waits for the rest of each."""
        wanted, give_up = self._sample().threads + THREADS, time.monotonic() + _PROBES_S
        with half_probes(self._application.address, THREADS):
            while self._sample().threads < wanted:
                if time.monotonic() > give_up:
                    raise SoakError(f"never were {THREADS} probes under way at once")
                time.sleep(_SAMPLE_EVERY_S)

    def _load(self, stretch: Stretch) -> None:
        looked_s, is_down, is_full = self._elapsed_s(), False, False
        self._upstream.recover()
        self._clients.begin()
        self._idle.begin()
        while (now_s := self._elapsed_s()) < stretch.ends_s:
            if is_full != stretch.is_full(now_s):
                is_full = not is_full
                self._disk.fill() if is_full else self._disk.empty()
            if is_down != stretch.is_down(now_s):
                is_down = not is_down
                self._upstream.break_down() if is_down else self._upstream.recover()
            elif not is_down:
                self._upstream.feed()
            if now_s - looked_s >= _LOOK_EVERY_S:
                looked_s = now_s
                self._look("outage" if is_down else "full disk" if is_full else "load")
            time.sleep(_TICK_S)
        self._disk.empty()
        self._idle.end()

    def _look(self, doing: str) -> None:
        sample, status = self._sample(), self._application.status()
        slots = None if status is None else (status["pool"]["busy"], status["pool"]["queued"])
        moment = Moment(self._elapsed_s(), doing, *self._clients.tally.snapshot(), sample, slots)
        self._show(moment)
        if not self.moments or moment.elapsed_s - self.moments[-1].elapsed_s >= self._keep_every_s:
            self.moments.append(moment)

    def _rest(self) -> Rest:
        elapsed_s = self._elapsed_s()
        self._clients.end()
        slots, in_flight = self._calm_down()
        samples = []
        for _ in range(_SAMPLES):
            samples.append(self._sample())
            time.sleep(_SAMPLE_EVERY_S)
        sent, outcomes = self._clients.tally.snapshot()
        unanswered = sent - sum(outcomes.values())
        return Rest(elapsed_s, sent, unanswered, self._pid_now(), slots, in_flight, least(samples))

    def _calm_down(self) -> tuple[int, int]:
        """Waits for calls whose client is gone; slots taken, and requests in flight at the API, 0 if all ends well."""
        give_up, calm_looks = time.monotonic() + _CALM_S, 0
        while True:
            status = self._application.status()
            slots = -1 if status is None else status["pool"]["busy"] + status["pool"]["queued"]
            in_flight = self._upstream.stats()["in_flight"]
            calm_looks = calm_looks + 1 if slots == in_flight == 0 else 0
            if calm_looks == _CALM_LOOKS or time.monotonic() > give_up:
                return slots, in_flight
            time.sleep(_SAMPLE_EVERY_S)

    def _sample(self) -> Sample:
        try:
            return sample_of(self._pid, self._upstream.port)
        except OSError:
            last = self._application.log.last()
            raise SoakError(
                f"the worker process {self._pid} is gone; the server's last line: {last}"
            ) from None

    def _pid_now(self) -> int:
        status = self._application.status()
        if status is None:
            raise SoakError("the application does not answer /api/llm/status")
        return int(status["pid"])

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began
