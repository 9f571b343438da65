import random

import pytest

from deepseek_client import Settings
from webapp.app import create_app

from . import calls

ROUTES = ("chat", "chat/sync", "parse", "parse/sync", "batch")


def some(seed="x", count=500):
    """The first calls of a client."""
    rng = random.Random(seed)
    return [calls.next_call(rng, number) for number in range(count)]


def test_every_kind_of_call():
    """The mix has each route, GET and POST, bad bodies, probes, and clients that leave in the body and after it."""
    seen = some()
    assert {call.kind for call in seen} == {"chat", "parse", "batch", "bad", "probe"}
    assert {f"/api/llm/{route}" for route in ROUTES} <= {call.path for call in seen}
    assert {call.method for call in seen if call.kind == "chat"} == {"GET", "POST"}
    assert {call.hang_up.share for call in seen if call.hang_up} == {0.5, 1.0}
    assert {call.hang_up.resets for call in seen if call.hang_up} == {True, False}


def test_seed():
    """The same seed gives the same calls, another one gives others."""
    assert some("a", 50) == some("a", 50) != some("b", 50)


def test_prompts_differ():
    """No two chats have the same prompt, so that an answer to another's is seen."""
    prompts = [prompt for call in some() for prompt in call.prompts]
    assert len(prompts) == len(set(prompts))


@pytest.mark.parametrize("route", ROUTES)
def test_bad_bodies_are_bad(sandbox, settings: Settings, route):
    """Each bad body is refused on each route, and none of them goes out."""
    http = create_app(settings).test_client()
    statuses = {http.post(f"/api/llm/{route}", data=body).status_code for body in calls.BAD_BODIES}
    assert statuses == {400}
    assert sandbox.stats()["requests"] == 0
