"""Which engine runs a call: the setting, a block's options, and what refuses them."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
from support.blocking import in_child
from support.loop_calls import client_of

from deepseek_client import AsyncFacade, ConfigError, Settings, call_options
from deepseek_client.calls import options


class TestChoice:
    """Which engine runs a call."""

    def test_setting(self):
        """LLM_ENGINE=loop runs calls on the loop, and call_options says otherwise for a block."""
        ran: list[str] = []

        def ask() -> None:
            ran.append("loop" if threading.get_ident() == here else "threads")

        here = threading.get_ident()
        facade = AsyncFacade(SimpleNamespace(ask=ask), settings=Settings.from_env({"LLM_ENGINE": "loop"}))
        asyncio.run(facade.ask_async())
        with call_options(engine="threads"):
            asyncio.run(facade.ask_async())
        assert ran == ["loop", "threads"]

    def test_without_greenlet(self, monkeypatch):
        """Without the extra, both ways to ask for the loop are refused by its name."""
        monkeypatch.setattr(options, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"deepseek-client-async\[loop\]"):
            AsyncFacade(SimpleNamespace(), settings=Settings(engine="loop"))
        with pytest.raises(ConfigError, match=r"deepseek-client-async\[loop\]"), call_options(engine="loop"):
            pass

    def test_without_transport(self):
        """DEEPSEEK_TRANSPORT=0 and the loop contradict each other."""
        with pytest.raises(ConfigError, match="need DEEPSEEK_TRANSPORT=1"):
            Settings.from_env({"LLM_ENGINE": "loop", "DEEPSEEK_TRANSPORT": "0"})

    def test_after_a_fork(self, sandbox):
        """A child of a process that has made calls on a loop makes its own."""
        client = client_of(sandbox, engine="loop")
        asyncio.run(client.chat_async("前"))

        def ask() -> None:
            assert "「子」" in asyncio.run(client.chat_async("子"))["text"]

        in_child(ask)
