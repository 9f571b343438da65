"""Tasks in a ledger, and the keys under which its server has them."""

from __future__ import annotations

from typing import Any

from deepseek_client.tasks.ledger import Begun, Ledger

QUEUE, PENDING, RUNNING, UNACKED = (
    f"{{deepseek}}:{name}" for name in ("queue", "pending", "running", "unacked")
)
GRACE_S = 0


def submitted(ledger: Ledger, prompt: str = "你好", **options: Any) -> str:
    """The id of a task that waits."""
    outcome, task_id = ledger.submit("chat", [prompt], "r-1", **options)
    assert outcome == "accepted"
    return task_id


def started(ledger: Ledger, task_id: str, run: str = "a", lease_s: float = 60) -> Begun:
    """A run of the task."""
    begun = ledger.start(task_id, run, lease_s, "channel")
    assert isinstance(begun, Begun)
    return begun
