"""gather_bounded: order, width, and what a failure does to the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.blocking import until

from deepseek_client import CallerLeft, CircuitOpen, DeepSeekError, Overloaded
from deepseek_client.calls.batches import gather_bounded


def _kept(item: Any, error: Exception) -> Exception:
    return error


def _raised(item: Any, error: Exception) -> None:
    raise error


async def test_the_order_and_the_width_are_kept():
    """Results come in the order of the items, and never more than `width` calls are under way."""
    under_way = most = 0

    async def call(item: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(item % 3):
            await asyncio.sleep(0)
        under_way -= 1
        return item * item

    assert await gather_bounded(call, range(20), 4, _raised) == [i * i for i in range(20)]
    assert most == 4


async def test_no_items_give_no_results():
    """An empty sequence gives an empty list."""
    assert await gather_bounded(asyncio.sleep, [], 5, _raised) == []


async def test_what_is_made_of_a_failure_takes_its_place():
    """`failed` gets the item and its failure, and what it gives stands where the result would."""

    async def call(item: int) -> float:
        return 6 / item

    results = await gather_bounded(call, [1, 0, 3], 2, lambda item, error: (item, type(error)))
    assert results == [6.0, (0, ZeroDivisionError), 2.0]


async def test_a_full_pool_costs_no_item_while_others_are_under_way():
    """An item that finds the pool full is left to the calls that have a place; it fails only when none has."""
    places = asyncio.Semaphore(2)

    async def call(item: int) -> int:
        if places.locked():
            raise Overloaded("x")
        async with places:
            await asyncio.sleep(0)
        return item

    assert await gather_bounded(call, range(50), 10, _kept) == list(range(50))
    async with places, places:
        results = await gather_bounded(call, range(5), 2, _kept)
    assert [type(result) for result in results] == [Overloaded] * 5


@pytest.mark.parametrize("refusal", [CallerLeft, CircuitOpen, Overloaded])
async def test_refusals_let_others_go_on(refusal: type[DeepSeekError]):
    """Calls that fail without waiting for anything do not keep the event loop from its other tasks."""
    refused: list[int] = []
    seen_meanwhile: list[int] = []

    async def call(item: int) -> None:
        if not refused:
            asyncio.get_running_loop().call_soon(lambda: seen_meanwhile.append(len(refused)))
        refused.append(item)
        raise refusal("x")

    await gather_bounded(call, range(100), 2, _kept)
    assert set(refused) == set(range(100))
    assert seen_meanwhile[0] < 10


async def test_a_failure_that_is_raised_cancels_the_rest():
    """A failure that `failed` raises again cancels the calls under way, and no further one begins."""
    cancelled: list[int] = []
    begun: list[int] = []

    async def call(item: int) -> None:
        begun.append(item)
        if item == 0:
            await asyncio.sleep(0)
            raise LookupError("first")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    with pytest.raises(LookupError, match="first"):
        await gather_bounded(call, range(10), 3, _raised)
    assert cancelled == [1, 2]
    assert begun == [0, 1, 2]


async def test_a_cancelled_batch_leaves_no_call_behind():
    """Cancelling the batch cancels its calls, and it ends only after they have ended."""
    under_way = 0

    async def call(item: int) -> None:
        nonlocal under_way
        under_way += 1
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            under_way -= 1

    batch = asyncio.ensure_future(gather_bounded(call, range(10), 3, _kept))
    await until(lambda: under_way == 3)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert under_way == 0
