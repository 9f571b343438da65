"""Retired models go out as what they were."""

from __future__ import annotations

import logging

import pytest
import requests
import responses
from support.serving import ask, exchanged

from deepseek_client import models

GIVE_UP_S = 5.0
URL = "https://api.example.test/chat/completions"


@pytest.mark.parametrize(
    ("model", "thinking"), [("deepseek-chat", "disabled"), ("deepseek-reasoner", "enabled")]
)
def test_a_retired_model_goes_out_as_its_successor(sandbox, model, thinking):
    """A retired model is replaced, with thinking set as it was, and the API accepts it."""
    assert exchanged(ask, sandbox.url, model).status == 200
    sent = sandbox.stats()["last_request_body"]
    assert (sent["model"], sent["thinking"]) == ("deepseek-flash", {"type": thinking})
    assert sent["messages"] == [{"role": "user", "content": "hi"}]


def test_a_current_model_goes_out_as_it_is(sandbox):
    """The bytes of a request with a current model are not touched."""
    exchanged(ask, sandbox.url, "deepseek-v4-pro")
    sent = sandbox.stats()["last_request_body"]
    assert sent["model"] == "deepseek-v4-pro"
    assert "thinking" not in sent


def test_thinking_that_the_client_sets_stays(sandbox):
    """A client that says itself whether to think is not overruled."""
    body = {"model": "deepseek-chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2000}
    body["thinking"] = {"type": "enabled"}
    url = f"{sandbox.url}/chat/completions"
    exchanged(requests.post, url, json=body, headers={"Authorization": "Bearer k"}, timeout=GIVE_UP_S)
    assert sandbox.stats()["last_request_body"]["thinking"] == {"type": "enabled"}


@pytest.mark.parametrize(
    "body",
    ['{"model": "x", "about": "deepseek-chat"}', '["deepseek-chat"]', "deepseek-chat", '{"model": 1}'],
)
def test_other_bodies_are_left_alone(body):
    """A body that merely mentions a retired model goes out byte by byte."""
    with responses.RequestsMock() as mock:
        mock.post(URL)
        exchanged(requests.post, URL, data=body)
        assert mock.calls[0].request.body in (body, body.encode())


def test_it_is_logged_once(sandbox, caplog, monkeypatch):
    """The replacement of a model is a warning, once per process."""
    monkeypatch.setattr(models, "_told", set())
    with caplog.at_level(logging.WARNING, "deepseek_client.models"):
        for _ in range(3):
            exchanged(ask, sandbox.url, "deepseek-chat")
    assert [record.getMessage() for record in caplog.records] == [
        "model deepseek-chat is retired: it goes out as deepseek-flash with thinking disabled"
    ]


def test_outside_of_exchanges_it_is_refused(sandbox):
    """Other code that asks for a retired model gets the API's 400."""
    assert ask(sandbox.url, "deepseek-chat").status_code == 400
