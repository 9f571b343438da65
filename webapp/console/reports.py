"""The numbers of the page as sentences and cells, in the reader's language."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from deepseek_client.queueing import enough_for
from deepseek_client.tasks import Overview

from .sample import Sample, Worker
from .sizing import Sizing
from .trying import Answer

__all__ = ["cancelled_report", "now_report", "sizing_report", "tasks_report", "tried_report"]

_Say = Callable[..., str]
_SHOWN_CHARACTERS = 200_000  # of an answer: more stops a browser


def now_report(say: _Say, samples: Sequence[Sample]) -> dict[str, Any]:
    """Returns what the newest sample says: a text for each figure, and a row for each process."""
    now, oldest = samples[-1], samples[0]
    refused = now.ended["refused"]
    if oldest.server == now.server:
        refused -= oldest.ended["refused"]
    breakers = sum(worker.breakers for worker in now.workers)
    queued_p95 = now.http_queued.since(oldest.http_queued).quantile(0.95)
    backlog = say("unknown") if now.backlog is None else str(now.backlog)
    if queued_p95 is not None:
        backlog = say("backlog_p95", now=backlog, time=_time(queued_p95))
    return {
        "figures": {
            "busy": say("busy_of", busy=now.busy, threads=now.threads),
            "queued": str(now.queued),
            "backlog": backlog,
            "in_flight": str(now.busy + now.queued),
            "refused": f"{refused:.0f}",
            "breaker": say("breaker_open", count=breakers) if breakers else say("breaker_closed"),
        },
        "has_server": bool(now.workers),
        "processes": [
            *(_row(worker) for worker in now.workers),
            *([_together(say, now.workers)] if now.workers else []),
        ],
    }


def sizing_report(say: _Say, sizing: Sizing, seconds: float, processes: int, is_sync: bool) -> dict[str, Any]:
    """Returns the verdict, why, and the figures behind it."""
    share_of_process = sizing.in_flight / max(1, processes)
    fair = enough_for(share_of_process)
    is_known = sizing.verdict not in ("no_pool", "too_few_calls")
    because = say(
        "because",
        rate=_short(sizing.rate),
        ran=_time(sizing.ran_mean_s),
        in_flight=_short(sizing.in_flight),
        needed=fair,
        processes=processes,
    )
    rows = {
        "rate": say("rate_value", rate=_short(sizing.rate)),
        "ran_mean": _time(sizing.ran_mean_s),
        "ran_p95": _time(sizing.ran_p95_s),
        "waits": _time(sizing.waited_s),
        "at_a_time": _short(sizing.in_flight),
        "needed": str(sizing.needed),
        "headroom": say(
            "headroom_value", spare=_short(fair - share_of_process), mean=_short(share_of_process)
        ),
        "setting": str(sizing.workers or say("unknown")),
        "idle": f"{100 * sizing.idle_share:.0f} %",
        "measured": _time(seconds),
    }
    return {
        "verdict": _sentence(say, sizing, is_sync),
        "kind": sizing.verdict,
        "because": because if is_known else "",
        "rows": [[say(name), value] for name, value in rows.items()],
        "numbers": {
            "seconds": seconds,
            "rate": sizing.rate,
            "ran_mean_s": sizing.ran_mean_s,
            "ran_p95_s": sizing.ran_p95_s,
            "waited_s": sizing.waited_s,
            "in_flight": sizing.in_flight,
            "needed": sizing.needed,
            "workers": sizing.workers,
            "idle_share": sizing.idle_share,
        },
    }


def tried_report(
    say: _Say, mode: str, answer: Answer, engines: dict[int, str], address: str
) -> dict[str, Any]:
    """Returns what came of something that was tried: its text or its error, and the facts of the call.

    Args:
        mode: as it was asked for, where the answer does not say how it came about.
        engines: what runs the calls of a process, by its pid.
    """
    body, mode = answer.body, answer.mode or mode
    error = code = text = ""
    if answer.failure:
        key = "unreadable" if answer.status else "no_answer"
        error = say(key, address=address, failure=answer.failure, status=answer.status)
    elif answer.status != 200:
        error, code = str(body.get("error", "")), str(body.get("code", ""))
    elif isinstance(body.get("results"), list):
        text = "\n".join(_batch_line(number, result) for number, result in enumerate(body["results"], 1))
    elif "intent" in body:
        text = "\n".join(f"{name}: {_shown(value)}" for name, value in body.items())
    else:
        text = str(body.get("text", ""))
    engine = engines.get(answer.facts.get("pid", 0), "")
    facts = [
        [say("mode"), mode],
        [say("engine"), engine if mode != "sync" else "inline"],
        [say("latency"), _time(answer.took_s)],
        [say("attempts"), str(answer.facts.get("attempts", "") or "")],
        *([[say("code"), code]] if code else []),
        [say("request_id"), answer.request_id],
    ]
    return {
        "title": mode,
        "text": text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…",
        "error": error[:_SHOWN_CHARACTERS],
        "code": code,
        "status": answer.status,
        "facts": [[name, value] for name, value in facts if value],
    }


def tasks_report(say: _Say, seen: Overview | None) -> dict[str, Any]:
    """Returns a text for each figure of the queue, and a row for each task with what can be cancelled first.

    Args:
        seen: None while the queue's server is away, which is one sentence.
    """
    if seen is None:
        return {"away": say("queue_away"), "figures": {}, "rows": []}
    return {
        "away": "",
        "figures": {
            "tasks_queued": str(seen.queued),
            "tasks_running": str(seen.running),
            "tasks_completed": str(seen.completed),
            "tasks_failed": str(seen.failed),
            "tasks_oldest": _time(seen.oldest_s) if seen.queued else say("none_waits"),
            "tasks_workers": str(seen.workers),
        },
        "rows": [
            [task.task_id, say(f"task_{task.status}"), task.method, _time(task.age_s)] for task in seen.tasks
        ],
    }


def cancelled_report(say: _Say, status: str | None) -> dict[str, Any]:
    """Returns what became of a cancellation, as a sentence.

    Args:
        status: of the task now; "" if there is no such task, None if the queue's server is away.
    """
    if status is None:
        return {"said": say("queue_away")}
    return {"said": say(f"task_{status or 'unknown'}_said")}


def _sentence(say: _Say, sizing: Sizing, is_sync: bool) -> str:
    values = {name: f"{value:.0f}" for name, value in sizing.values.items()}
    values["waited"] = _time(sizing.waited_s)
    values["account_waited"] = _time(sizing.account_waited_s)
    values["workers"] = str(sizing.workers)
    values["idle"] = values.get("idle_percent", "")
    values["busy"] = values.get("busy_percent", "")
    key = sizing.verdict
    if key == "server_limit" and is_sync:
        key = "server_limit_sync"
    if key == "too_small" and sizing.values["refused"]:
        key = "too_small_refused"
    return say(key, **values)


def _row(worker: Worker) -> list[str]:
    return [
        str(worker.pid or ""),
        worker.mode,
        worker.engine,
        worker.since[11:19],
        str(worker.threads),
        str(worker.busy),
        str(worker.queued),
        str(worker.breakers),
    ]


def _together(say: _Say, workers: Sequence[Worker]) -> list[str]:
    def words(values: set[str]) -> str:
        return ", ".join(sorted(filter(None, values)))

    return [
        say("together"),
        words({worker.mode for worker in workers}),
        words({worker.engine for worker in workers}),
        "",
        *(
            str(sum(getattr(worker, name) for worker in workers))
            for name in ("threads", "busy", "queued", "breakers")
        ),
    ]


def _batch_line(number: int, result: Any) -> str:
    if not isinstance(result, dict):
        return f"{number}. {result}"
    if result.get("success"):
        return f"{number}. {result.get('text', '')}"
    return f"{number}. {result.get('error', '')} ({result.get('code', '')})"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def _short(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.1f}"
