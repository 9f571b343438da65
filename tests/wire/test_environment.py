"""Proxies and netrc: what the environment says is honoured, also when it changes, and asked for once."""

from __future__ import annotations

import os
import urllib.request
from typing import Any

import pytest
import requests
import requests.sessions
from support.patience import GIVE_UP_S
from support.serving import exchanged, reply

from deepseek_client.wire.exchange import Exchange


def get(url: str) -> Exchange:
    return exchanged(requests.get, url, timeout=GIVE_UP_S)


@pytest.fixture
def origin(serve):
    return serve(lambda handler: reply(handler, body=b"origin"))


@pytest.fixture
def proxy(serve):
    return serve(lambda handler: reply(handler, body=b"proxy"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `requests` asks of the environment while it is counted."""
    questions: list[str] = []
    get(f"http://127.0.0.1:9/{os.getpid()}")  # installed from here on

    def counting(name: str, module: Any) -> None:
        ask = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, **kwargs: questions.append(name) or ask(*args, **kwargs)
        )

    counting("getproxies", requests.utils)
    counting("should_bypass_proxies", requests.utils)
    return questions


class TestProxies:
    """The variables of proxies."""

    @pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
    def test_a_proxy_is_used(self, origin, proxy, monkeypatch, variable):
        """A proxy of the environment gets the request."""
        monkeypatch.setenv(variable, proxy.url)
        assert get(origin.url).body == b"proxy"

    def test_a_change_counts_at_once(self, origin, proxy, monkeypatch):
        """A proxy that appears, moves behind no_proxy, or goes, counts from the next call on."""
        assert get(origin.url).body == b"origin"
        monkeypatch.setenv("http_proxy", proxy.url)
        assert get(origin.url).body == b"proxy"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert get(origin.url).body == b"origin"
        monkeypatch.delenv("no_proxy")
        assert get(origin.url).body == b"proxy"
        monkeypatch.delenv("http_proxy")
        assert get(origin.url).body == b"origin"

    def test_a_call_says_itself(self, origin, proxy, monkeypatch):
        """proxies= of the call and trust_env=False of a Session are honoured."""
        exchange = exchanged(requests.get, origin.url, proxies={"http": proxy.url}, timeout=GIVE_UP_S)
        assert exchange.body == b"proxy"
        monkeypatch.setenv("http_proxy", proxy.url)
        with requests.Session() as session:
            session.trust_env = False
            assert exchanged(session.get, origin.url, timeout=GIVE_UP_S).body == b"origin"

    def test_a_caller_may_change_its_answer(self, origin, monkeypatch, proxy):
        """What one call does with its dictionary of proxies does not reach the next."""
        monkeypatch.setenv("http_proxy", proxy.url)

        def spoil() -> None:
            requests.sessions.get_environ_proxies(origin.url).clear()

        exchanged(spoil)
        assert get(origin.url).body == b"proxy"

    def test_the_environment_is_walked_once(self, origin, asked):
        """Ten calls to one address ask for proxies once; a change of the environment asks again."""
        for _ in range(10):
            get(origin.url)
        assert sorted(asked) == ["getproxies", "should_bypass_proxies"]

    def test_the_memory_is_bounded(self, origin):
        """A client with ever new addresses does not fill the memory."""
        from deepseek_client.wire import environment

        for number in range(environment._KEPT + 5):
            get(f"{origin.url}/{number}")
        assert len(environment._memory.proxies) <= environment._KEPT

    def test_nothing_is_remembered_where_the_system_has_settings(self, monkeypatch):
        """Where proxies come from the system's own settings too, they are asked for each time."""
        from deepseek_client.wire import environment

        def ask(url: str, no_proxy: str | None = None) -> dict[str, str]:
            return {}

        monkeypatch.setattr(requests.sessions, "get_environ_proxies", ask)
        monkeypatch.setattr(urllib.request, "getproxies", dict)
        environment.install()
        assert requests.sessions.get_environ_proxies is ask


class TestNetrc:
    """The files of netrc."""

    @staticmethod
    def sent(server: Any) -> str | None:
        get(server.url)
        return server.requests[-1][1].get("Authorization")

    def test_a_file_counts_and_its_change_too(self, origin, monkeypatch, tmp_path):
        """A netrc that appears, changes or goes counts from the next call on."""
        path = tmp_path / "netrc"
        monkeypatch.setenv("NETRC", str(path))
        assert self.sent(origin) is None
        path.write_text("machine 127.0.0.1 login one password secret\n")
        first = self.sent(origin)
        assert first is not None
        path.write_text("machine 127.0.0.1 login another password secret\n")
        assert self.sent(origin) not in (None, first)
        path.unlink()
        assert self.sent(origin) is None

    def test_a_path_below_the_home_folder(self, origin, monkeypatch, tmp_path):
        """NETRC=~/name is found below HOME, and its change noticed."""
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", "~/mine")
        assert self.sent(origin) is None
        (tmp_path / "mine").write_text("machine 127.0.0.1 login one password secret\n")
        assert self.sent(origin) is not None

    def test_the_home_folder_counts(self, origin, monkeypatch, tmp_path):
        """Without NETRC the file in the home folder is read, also when HOME changes."""
        monkeypatch.delenv("NETRC", raising=False)
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login one password secret\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert self.sent(origin) is not None
        monkeypatch.setenv("HOME", str(tmp_path / "empty"))
        assert self.sent(origin) is None


def test_outside_of_calls_nothing_is_remembered(origin, asked):
    """Other code asks the environment each time, as ever."""
    for _ in range(3):
        requests.get(origin.url, timeout=GIVE_UP_S)
    assert asked.count("getproxies") == 3
