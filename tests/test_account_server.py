"""The account's places on a real server: who gets one, in which order, and what is left of who has died."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.blocking import until
from support.queue_server import PASSWORD, QueueServer

from deepseek_client.account_server import AccountServer

NEVER_MS = 1_000_000
PREFIX = "{deepseek}:lease:"


@pytest.fixture
def store(queue: QueueServer) -> Iterator[redis.Redis]:
    """What lies on the server, of which nothing is left of another test."""
    with redis.Redis.from_url(queue.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def empty(queue: QueueServer) -> Iterator[AccountServer]:
    """A server that has just begun; the client may speak for every process of a test."""
    made = AccountServer(queue.url)
    yield made
    made.close()


@pytest.fixture
def server(empty: AccountServer, store: redis.Redis) -> AccountServer:
    """One that has known a process for long."""
    Process(empty)
    store.hset(PREFIX + "anew", "at", 0)
    return empty


class Process:
    """One process, as the server sees it."""

    names = itertools.count(1)

    def __init__(self, server: AccountServer, limit: int = 2, **news: Any) -> None:
        self.server = server
        self.name = f"process{next(self.names)}"
        self.news = {
            "replaces": [], "limit": limit, "processes": 1, "expiry_ms": NEVER_MS, "unheard_ms": NEVER_MS,
            "recovery_ms": NEVER_MS, "passed": 500,
        }  # fmt: skip
        self.tell(joins=True, **news)

    def tell(self, **news: Any) -> Any:
        told = {
            "joins": False,
            "wanted": [],
            "taken": [],
            "gone": [],
            "refused_at": None,
            **self.news,
            **news,
        }
        return self.server.exchange(self.name, told)

    def granted(self, **news: Any) -> list[str]:
        return self.tell(**news).granted


def test_places_go_to_the_longest_waiting_of_all_processes(server):
    """Places are given up to the limit; one that is left goes to whoever has waited longest, wherever that is."""
    one, two, three = (Process(server) for _ in range(3))
    assert one.granted(wanted=["1", "2", "3"]) == ["1", "2"]
    assert two.granted(wanted=["1"]) == []
    assert three.granted(wanted=["1"]) == []
    assert one.granted(gone=["1"]) == ["3"]
    assert one.granted(gone=["2"]) == []
    assert server.next_grant(two.name) == "1"
    assert two.granted(gone=["1"]) == []
    assert three.granted() == ["1"], "what was not heard of is told with the next answer"
    assert three.granted() == []


def test_who_gives_up_waiting_gets_nothing(server):
    """What is gone before it was granted, or in the same message, takes no place; twice gone is gone once."""
    one, two = Process(server, limit=1), Process(server, limit=1)
    assert one.granted(wanted=["1"]) == ["1"]
    assert two.granted(wanted=["1", "2"], gone=["2"]) == []
    assert two.granted(gone=["1"]) == []
    assert one.granted(gone=["1"]) == []
    assert one.granted(wanted=["3", "4"], gone=["1"]) == ["3"]


def test_what_was_taken_counts(server):
    """What a process took while the server was away counts, above the limit too, until it is gone."""
    one, two = Process(server, taken=["1", "2", "3"]), Process(server)
    assert two.granted(wanted=["1"]) == []
    assert one.granted(gone=["1", "2"]) == []
    assert server.next_grant(two.name) == "1"


def test_the_dead_give_back_what_they_held(server, store):
    """Who has not beaten for the time of expiry holds nothing and waits for nothing, and must join again."""
    dead, alive = Process(server), Process(server)
    assert dead.granted(wanted=["1", "2", "3"]) == ["1", "2"]
    assert alive.granted(wanted=["1"]) == []
    store.zincrby(PREFIX + "beats", -2 * NEVER_MS, dead.name)
    assert alive.granted() == ["1"]
    assert dead.tell() is None
    assert alive.granted(wanted=["2"]) == ["2"]


def test_who_joins_replaces_what_it_was(server):
    """A process that lost its connection holds what it says under its new name, and nothing under the old one."""
    old, other = Process(server), Process(server)
    assert old.granted(wanted=["1", "2", "3"]) == ["1", "2"]
    new = Process(server, replaces=[old.name], taken=["1"], wanted=["3"])
    assert new.granted() == []
    assert other.granted(wanted=["1"]) == []
    assert old.tell() is None
    assert new.granted(gone=["1"]) == []
    assert server.next_grant(other.name) == "1"


def test_a_process_that_hears_of_nothing_is_passed_over(server):
    """A place is not given to a process that left a grant lying, as a killed one does, but to the next that waits."""
    killed, alive = Process(server, limit=1), Process(server, limit=1)
    assert alive.granted(wanted=["1"]) == ["1"]
    assert killed.granted(wanted=["1", "2"]) == []
    assert alive.granted(wanted=["2", "3"], gone=["1"]) == []
    assert alive.granted(limit=2, unheard_ms=0) == ["2"]
    assert alive.granted(limit=3, unheard_ms=0, passed=1) == [], (
        "behind more than so many nobody is looked for"
    )
    assert sorted(killed.granted(limit=3)) == ["1", "2"], "it was alive after all, and kept its turn"


def test_an_empty_server_gives_shares_at_first(empty, store):
    """Until all that live have told what they hold, each gets the part that the best informed one knows of."""
    one = Process(empty, limit=9, processes=3)
    assert one.granted(wanted=["1", "2", "3", "4"], processes=1) == ["1", "2", "3"]
    two = Process(empty, limit=9, taken=["1", "2", "3", "4"])
    assert two.granted(wanted=["5"]) == []
    store.hset(PREFIX + "anew", "at", 0)
    assert one.granted() == ["4"]
    assert two.granted() == ["5"]


def test_a_refusal_that_names_its_limit_lowers_the_limit(server):
    """The named limit holds for all, under their own; one that is higher than ours is a step of a tenth."""
    one, two = Process(server, limit=40), Process(server, limit=40)
    assert one.tell(refused_at=30).limit == 30
    assert two.tell().limit == 30
    assert two.tell(refused_at=39).limit == 30, "many refusals of one moment are one step"
    assert two.tell(refused_at=20).limit == 20, "unless they name a lower limit"
    assert two.tell(limit=10).limit == 10


def test_a_refusal_without_a_name_is_a_step(server):
    """The limit becomes a tenth lower, by one at least, and never nothing."""
    assert Process(server, limit=40).tell(refused_at=0).limit == 36


def test_the_lowest_limit_is_one(server):
    """However often the API refuses, one call at a time is made."""
    assert Process(server, limit=1).tell(refused_at=0).limit == 1


def test_a_lowered_limit_comes_back_in_twentieths(server, store):
    """Each time of recovery gives a twentieth back, until the limit is what it was."""
    one = Process(server, limit=40)
    assert one.tell(refused_at=1).limit == 1
    assert one.tell(recovery_ms=NEVER_MS).limit == 1
    store.hincrby(PREFIX + "lowered", "at", -3 * NEVER_MS)
    assert one.tell().limit == 1 + 3 * 2
    assert one.tell(recovery_ms=1000).limit == 40


def test_all_keys_have_one_hash_tag(server, store):
    """A cluster keeps them on one node, so that each script sees them all; nothing else is written."""
    one, two = Process(server, limit=1), Process(server, limit=1)
    one.tell(wanted=["1", "2"], refused_at=0)
    two.tell(wanted=["1"])
    one.tell(gone=["1"])
    assert [key for key in store.keys("*") if not key.startswith(PREFIX)] == []


def test_a_server_that_is_away_is_a_connection_error(own_queue: QueueServer):
    """Refused, frozen, or without the right password: it is one error, and without a retry."""
    server = AccountServer(own_queue.url)
    one = Process(server)
    own_queue.freeze()
    with pytest.raises(ConnectionError):
        one.tell()
    own_queue.thaw()
    assert one.tell().processes == 1
    own_queue.kill()
    for ask in (one.tell, lambda: server.next_grant(one.name)):
        with pytest.raises(ConnectionError):
            ask()
    own_queue.start()
    stranger = AccountServer(own_queue.url.replace(PASSWORD, "wrong"))
    with pytest.raises(ConnectionError, match=r"(?i)auth|password"):
        Process(stranger)
    stranger.close()
    own_queue.client().flushall()
    assert one.tell() is None, "what it knew is lost"
    server.close()


async def test_a_closed_client_has_no_connection(queue: QueueServer, store: redis.Redis):
    """close() ends what the server has of it, and a question after that is answered all the same."""
    server = AccountServer(queue.url)
    one = Process(server)
    number = server._commands.client_id()
    server.close()
    await until(lambda: all(int(client["id"]) != number for client in store.client_list()))
    assert one.tell().processes == 1
    server.close()


def test_celerys_form_of_a_unix_socket_is_understood():
    """The address of the queue is the address of the places."""
    server = AccountServer("redis+socket://:secret@/run/valkey.sock?virtual_host=3")
    options = server._commands.connection_pool.connection_kwargs
    assert (options["path"], options["db"], options["password"]) == ("/run/valkey.sock", 3, "secret")


def test_a_unix_socket_is_connected_to(tmp_path):
    """A server that listens on a socket of this machine is as good as one on the network."""
    queue = QueueServer(tmp_path, unixsocket=str(tmp_path / "s"))
    server = AccountServer(f"redis+socket://:{PASSWORD}@{tmp_path}/s?virtual_host=3")
    assert Process(server).granted(wanted=["1"]) == ["1"]
    server.close()
    queue.close()
