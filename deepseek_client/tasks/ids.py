"""Ids of tasks that prove themselves: an expired one is told from one that never was, and nothing is stored for it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time

__all__ = ["KEY_BYTES", "is_genuine", "new_id"]

KEY_BYTES = 32
_TIME_BYTES, _RANDOM_BYTES, _MAC_BYTES = 5, 7, 8  # 20 together: 32 characters of base32, no padding


def new_id(key: bytes) -> str:
    """An id of 32 lower-case letters and digits: the time, chance, and the proof that who made it had the key.

    Threads: any.
    """
    head = int(time.time()).to_bytes(_TIME_BYTES, "big") + secrets.token_bytes(_RANDOM_BYTES)
    return base64.b32encode(head + _mac(key, head)).decode().lower()


def is_genuine(key: bytes, task_id: str) -> bool:
    """Whether the id was made with this key, by whatever process, however long ago.

    Threads: any.
    """
    try:
        raw = base64.b32decode(task_id.upper())
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return False
    head, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    if len(raw) != _TIME_BYTES + _RANDOM_BYTES + _MAC_BYTES or task_id != task_id.lower():
        return False
    return hmac.compare_digest(_mac(key, head), mac)


def _mac(key: bytes, head: bytes) -> bytes:
    return hmac.digest(key, head, hashlib.sha256)[:_MAC_BYTES]
