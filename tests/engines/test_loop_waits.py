"""What calls on an event loop wait for: sockets by one epoll, moments by one timer."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import select
import socket
import time
import weakref

import pytest
from support.blocking import in_child
from support.patience import GIVE_UP_S

from deepseek_client.engines import loop_waits
from deepseek_client.engines.loop_waits import waits_of

WORD = contextvars.ContextVar("word", default="")


@pytest.fixture(params=["epoll", "readers of the loop"])
def _each_way(request, monkeypatch):
    """With the system's epoll, and as on a system that has none."""
    if request.param != "epoll":
        monkeypatch.setattr(loop_waits, "_epoll", None)
    elif loop_waits._epoll is None:
        pytest.skip("this system has no epoll")


@pytest.fixture
def pair():
    """Two connected sockets that do not block."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def turns(count=5):
    """Lets the loop see whatever is ready by now."""
    for _ in range(count):
        await asyncio.sleep(0)


async def wait(sock, *, writes=False):
    """Waits for a socket as a call does."""
    future, number = asyncio.get_running_loop().create_future(), sock.fileno()
    waits = waits_of(asyncio.get_running_loop())
    waits.add(number, future, writes=writes)
    try:
        return await asyncio.wait_for(future, GIVE_UP_S)
    finally:
        waits.remove(number, future, writes=writes)


class TestSockets:
    """Sockets that can be read or written."""

    @pytest.mark.usefixtures("_each_way")
    async def test_a_wait_ends_with_a_byte(self, pair):
        """A wait goes on until there is something to read, as often as there is; to write there is room at once."""
        ours, theirs = pair
        for _ in range(3):
            reading = asyncio.ensure_future(wait(ours))
            assert await wait(theirs, writes=True)
            await turns()
            assert not reading.done()
            theirs.send(b"x")
            assert await reading
            ours.recv(10)

    @pytest.mark.usefixtures("_each_way")
    async def test_what_lies_there_already_ends_a_wait(self, pair):
        """A byte that came before anybody waited is seen by the one who waits next, and again while it lies there."""
        ours, theirs = pair
        theirs.send(b"x")
        await turns()
        assert await wait(ours)
        assert await wait(ours)

    @pytest.mark.usefixtures("_each_way")
    async def test_the_end_of_a_connection_ends_a_wait(self, pair):
        """Who waits to read learns that the other side has closed."""
        ours, theirs = pair
        reading = asyncio.ensure_future(wait(ours))
        await turns()
        theirs.close()
        assert await reading

    async def test_two_calls_on_one_socket(self, pair):
        """Of two that wait for the same socket, each gets what it waits for; one that stops keeps no other from it."""
        ours, theirs = pair
        first, second, third = (asyncio.ensure_future(wait(ours)) for _ in range(3))
        await turns()
        assert await wait(ours, writes=True)
        first.cancel()
        await turns()
        assert not second.done()
        theirs.send(b"x")
        assert await second
        assert await third

    async def test_a_number_that_is_used_again(self, pair):
        """A new connection that gets the number of a closed one is waited for as any other."""
        ours, theirs = pair
        theirs.send(b"x")
        assert await wait(ours)
        number = ours.fileno()
        ours.close()
        theirs.close()
        once, more = socket.socketpair()
        with more:
            if (descriptor := once.detach()) != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            with socket.socket(fileno=number) as again:
                reading = asyncio.ensure_future(wait(again))
                await turns()
                assert not reading.done()
                more.send(b"x")
                assert await reading

    async def test_a_closed_socket_cannot_be_waited_for(self, pair):
        """It raises, and leaves nothing behind."""
        ours, _ = pair
        number, waits = ours.fileno(), waits_of(asyncio.get_running_loop())
        ours.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            waits.add(number, asyncio.get_running_loop().create_future(), writes=False)
        assert not waits._waiting

    @pytest.mark.usefixtures("_each_way")
    def test_a_fork_does_not_take_the_parents_waits(self, pair):
        """What a child waits for on a loop of its own is nothing to its parent's calls, and both get theirs."""
        ours, theirs = pair

        def in_the_child() -> None:
            async def ask() -> None:
                mine, other = socket.socketpair()
                with mine, other:
                    other.send(b"x")
                    assert await wait(mine)

            asyncio.run(ask())

        async def ask() -> None:
            reading = asyncio.ensure_future(wait(ours))
            await turns()
            await asyncio.to_thread(in_child, in_the_child)
            assert not reading.done()
            theirs.send(b"x")
            assert await reading

        asyncio.run(ask())


class TestMoments:
    """Things to do at a moment."""

    async def test_in_their_order(self):
        """Each is done at its moment, whatever the order in which they were named; one that is cancelled is not."""
        waits, done, all_done = waits_of(asyncio.get_running_loop()), [], asyncio.Event()
        now = time.monotonic()
        waits.at(now + 0.03, all_done.set)
        waits.at(now + 0.02, lambda: done.append(2))
        waits.at(now + 0.01, lambda: done.append("cancelled")).cancel()
        waits.at(now + 0.01, lambda: done.append(1))
        waits.at(now - 1, lambda: done.append(0))
        waits.at(now + 1000, lambda: done.append("too early"))
        await asyncio.wait_for(all_done.wait(), GIVE_UP_S)
        assert done == [0, 1, 2]

    async def test_cancelled_ones_do_not_pile_up(self):
        """Ten thousand calls that end long before their time leave no more than a hundred moments in memory."""
        waits = waits_of(asyncio.get_running_loop())
        for _ in range(10_000):
            moment = waits.at(time.monotonic() + 1000, list)
            moment.cancel()
            moment.cancel()  # a second time changes nothing
        assert len(waits._moments) <= 101

    async def test_short_ones_before_a_late_one_leave_no_timers(self):
        """A loop has one timer for a late moment, however many are over before that."""
        loop, waits = asyncio.get_running_loop(), waits_of(asyncio.get_running_loop())
        late = waits.at(time.monotonic() + 3600, lambda: None)
        before = len(loop._scheduled)
        for _ in range(50):
            done = asyncio.Event()
            waits.at(time.monotonic(), done.set)
            await asyncio.wait_for(done.wait(), GIVE_UP_S)
        late.cancel()
        assert len([timer for timer in loop._scheduled if not timer.cancelled()]) <= before

    async def test_one_that_fails(self):
        """What one raises is the loop's to tell, and the next is done."""
        waits, done = waits_of(asyncio.get_running_loop()), asyncio.Event()
        told: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        waits.at(time.monotonic(), lambda: 1 / 0)
        waits.at(time.monotonic(), done.set)
        await asyncio.wait_for(done.wait(), GIVE_UP_S)
        assert [type(each["exception"]) for each in told] == [ZeroDivisionError]

    async def test_no_call_lends_its_context(self):
        """What is done for one call sees no variable of the call that had the timer set."""
        seen: list[str] = []
        done = asyncio.Event()
        WORD.set("the first call's")
        waits = waits_of(asyncio.get_running_loop())
        waits.at(time.monotonic(), lambda: seen.append(WORD.get()))
        waits.at(time.monotonic(), done.set)
        await asyncio.wait_for(done.wait(), GIVE_UP_S)
        assert seen == [""]


@pytest.mark.usefixtures("_each_way")
def test_a_loop_leaves_memory(pair):
    """A loop that is closed is forgotten with all that it waited for: some servers make one for each request."""
    loops = []

    async def use() -> None:
        loop = asyncio.get_running_loop()
        waits_of(loop).at(time.monotonic() + 1000, list)
        waits_of(loop).add(pair[0].fileno(), loop.create_future(), writes=False)
        loops.append(weakref.ref(loop))
        loops.append(weakref.ref(waits_of(loop)))

    asyncio.run(use())
    gc.collect()
    assert [reference() for reference in loops] == [None, None]


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")
async def test_a_loop_has_one_descriptor_for_all(pair):
    """However many sockets are waited for, the loop itself knows of one."""
    loop = asyncio.get_running_loop()
    waits_of(loop)
    before = set(os.listdir("/proc/self/fd"))
    waiting = [asyncio.ensure_future(wait(sock)) for sock in pair * 5]
    await turns()
    assert waits_of(loop) is waits_of(loop)
    assert set(os.listdir("/proc/self/fd")) == before
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
