"""The message of a task, as Celery and kombu put it into a Redis list: it carries the task's id and nothing else.

We write it ourselves, because a message that kombu sends is a second step after the task's record, between which a
process or a server can stop.
"""

from __future__ import annotations

import base64
import json

__all__ = ["QUEUE", "TASK_NAME", "message_for"]

QUEUE = "queue"
"""The queue's name for Celery; the server's key has the prefix of the ledger before it."""

TASK_NAME = "deepseek_chat_task"

_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def message_for(task_id: str, sends: int = 1) -> bytes:
    """The message that gives a task to a worker.

    Args:
        sends: how often the task has been put into the queue, this time counted: it is part of the message's tag,
            under which kombu notes a message that a worker holds.

    Source: what `apply_async` of Celery 5.7 writes over kombu 5.7; a test compares them.
    """
    body = json.dumps([[task_id], {}, _EMBED])
    return json.dumps({
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": TASK_NAME,
            "id": task_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": task_id,
            "parent_id": None,
            "argsrepr": f"({task_id!r},)",
            "kwargsrepr": "{}",
            "origin": "deepseek_client",
            "ignore_result": True,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": f"{task_id}.{sends}",
        },
    }).encode()  # fmt: skip
