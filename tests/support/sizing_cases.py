"""Loads that are known, each with its verdict and the workers that would be right."""

from __future__ import annotations

from dataclasses import replace

from webapp.console.sizing import Load

# 20 calls a second of 0.5 s for a minute on two processes: 10 run at a time, 5 in each.
LOAD = Load(
    seconds=60,
    arrived=1200,
    refused=0,
    ran=1200,
    ran_s=600,
    ran_p95_s=0.8,
    waited_s=0.004,
    attempts=1200,
    rate_limited=0,
    processes=2,
    workers=11,
)

CASES = [
    ("fits", LOAD, 11),
    ("too_large", replace(LOAD, workers=50), 11),
    ("too_small", replace(LOAD, workers=4, ran=960, ran_s=480, waited_s=1.8), 11),
    ("too_small", replace(LOAD, workers=4, refused=100), 11),
    ("account_limit", replace(LOAD, workers=4, waited_s=1.8, rate_limited=120), 11),
    # Two sync workers: 40 requests wait in front of them, and each pool has one call at a time.
    (
        "server_limit",
        replace(LOAD, arrived=240, ran=240, ran_s=120, http_slots=2, http_busy=10, backlog=40, workers=5),
        11,
    ),
    ("account_full", replace(LOAD, waited_s=1.8, account_waited_s=0.9), 11),
    ("no_pool", replace(LOAD, workers=0, processes=0), 18),
    ("too_few_calls", replace(LOAD, arrived=3, ran=3, ran_s=1.5), 1),
]
