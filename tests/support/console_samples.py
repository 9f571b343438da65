"""Ten minutes of a server's life, made up: what a console has kept of it."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flask import Flask
from werkzeug.serving import make_server

from deepseek_client.telemetry.metrics import _FINE_BUCKETS_S as BOUNDS
from webapp.console import create_console
from webapp.console.command import _Handler
from webapp.console.histograms import histogram_of
from webapp.console.sample import Sample, Worker
from webapp.console.watching import Watch

from .patience import GIVE_UP_S

PIDS = (4101, 4102)
# In the browser: whether something blue is drawn in each column of a chart. The letters of its axis have blue rims.
BLUE_COLUMNS = """figure => {
    const canvas = figure.querySelector("canvas"), over = figure.querySelector(".u-over").getBoundingClientRect();
    const scale = canvas.width / canvas.getBoundingClientRect().width;
    const left = (over.left - canvas.getBoundingClientRect().left) * scale, width = over.width * scale;
    const top = (over.top - canvas.getBoundingClientRect().top) * scale, height = over.height * scale;
    const {data} = canvas.getContext("2d").getImageData(left, top, width, height);
    const columns = Array.from({length: Math.floor(width)}, () => false);
    for (let at = 0; at < data.length; at += 4) {
        if (data[at + 2] > data[at] + 60) columns[at / 4 % Math.floor(width)] = true;
    }
    return columns;
}"""
SINCE = "2026-11-26T09:41:07+00:00"


def ten_minutes(until: float, threads: int = 8) -> Iterator[Sample]:
    """A sample for each of 600 seconds: calls that come and go in waves, and most of a minute in which many fail.

    Args:
        until: the last one's moment, in seconds since 1970.
        threads: LLM_MAX_WORKERS of each of two processes.
    """
    chance = random.Random(3)
    waited, ran = _Times(), _Times()
    ended = {"ok": 0.0, "failed": 0.0, "refused": 0.0}
    tokens, finish = {"prompt": 0.0, "completion": 0.0}, {"stop": 0.0, "length": 0.0}
    for second in range(600):
        wave = 9 + 5 * math.sin(second / 60)
        is_out = 280 < second < 330
        calls = max(0, round(chance.gauss(wave, 1.5)))
        busy = min(2 * threads, wave * 1.2)
        over = max(0.0, wave * 1.2 - 2 * threads)
        for _ in range(calls):
            is_failed = is_out and chance.random() < 0.6
            ended["failed" if is_failed else "ok"] += 1
            ran.note(chance.lognormvariate(0.1, 0.35))
            waited.note(chance.expovariate(2) if over else chance.expovariate(80))
            if not is_failed:
                tokens["prompt"] += 110
                tokens["completion"] += chance.randint(40, 160)
                finish["length" if chance.random() < 0.05 else "stop"] += 1
        each = round(busy / 2)
        yield Sample(
            at=until - 599 + second,
            server=("made up",),
            workers=tuple(
                Worker(pid, "async", "threads", SINCE, threads, min(threads, each + n), round(over / 2), 0)
                for n, pid in enumerate(PIDS)
            ),
            backlog=0,
            ended=dict(ended),
            attempts=sum(ended.values()),
            waited=waited.histogram(),
            ran=ran.histogram(),
            http_s=ran.total + waited.total,
            http_requests=sum(ended.values()),
            tokens=dict(tokens),
            finish=dict(finish),
        )


@contextmanager
def console_of(samples: Sequence[Sample]) -> Iterator[str]:
    """A console that has kept these samples and takes no others: its address."""
    looks, moments = iter(samples), iter([sample.at for sample in samples])
    watch = Watch(lambda at: next(looks), clock=lambda: next(moments))
    for _ in samples:
        watch.sample()
    watch.start = lambda: None  # type: ignore[method-assign]
    app = create_console("http://127.0.0.1:9", threads=8, watch=watch)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(GIVE_UP_S)
        server.server_close()
        disconnect(app)


def disconnect(console: Flask) -> None:
    """Ends the connections to the queue's server, which a console keeps for as long as its process lives."""
    jobs = console.extensions["console"].queue._jobs
    if jobs is not None:
        jobs.close()


class _Times:
    """A histogram that is being counted."""

    def __init__(self) -> None:
        self.counts = [0.0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def note(self, seconds: float) -> None:
        place = sum(bound < seconds for bound in BOUNDS)
        self.counts[place] += 1
        self.total += seconds

    def histogram(self):
        return histogram_of(zip([*map(str, BOUNDS), "+Inf"], self.counts, strict=True), self.total)
