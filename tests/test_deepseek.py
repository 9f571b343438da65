"""get_default_client: one per process."""

from __future__ import annotations

import asyncio
import os
import threading
import traceback

import pytest
from support.patience import GIVE_UP_S

from deepseek_client import ConfigError, get_default_client
from deepseek_client import deepseek as default


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(default, "_default", None)


def test_it_is_one_per_process():
    """Every caller in every thread gets the same client, which swallows like the legacy one."""
    meeting = threading.Barrier(4, timeout=GIVE_UP_S)
    found = []

    def find() -> None:
        meeting.wait()
        found.append(get_default_client())

    threads = [threading.Thread(target=find) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GIVE_UP_S)
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


def test_a_closed_one_is_replaced():
    """After its client was closed, a process gets a new one."""
    first = get_default_client()
    first.close()
    assert get_default_client() is not first


def test_a_wrong_variable_is_named(monkeypatch):
    """A bad setting is a ConfigError at the first call, not at the import."""
    monkeypatch.setenv("LLM_MAX_WORKERS", "five")
    with pytest.raises(ConfigError, match="LLM_MAX_WORKERS='five': need a whole number from 1 to 1000"):
        get_default_client()


def test_a_child_has_its_own(monkeypatch, sandbox):
    """After a fork the child gets a client of its own that works."""
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-test")
    monkeypatch.setenv("DEEPSEEK_BASE_URL", sandbox.url)
    parents = get_default_client()
    assert asyncio.run(parents.chat_async("hi"))["text"]
    pid = os.fork()
    if pid == 0:
        try:
            child = get_default_client()
            assert child is not parents
            assert asyncio.run(child.chat_async("hi"))["text"]
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
