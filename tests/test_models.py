"""Retired models go out as what they were."""

from __future__ import annotations

import functools
import json
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import responses
from support.patience import GIVE_UP_S
from support.serving import Exchanged, ask

from deepseek_client import models
from deepseek_client.wire import adapter
from deepseek_client.wire.exchange import Exchange, Rules

BODIES = 3000
SEED = 20261126
URL = "https://api.deepseek.com/chat/completions"


def rewritten(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Exchange:
    """The exchange of one call of the function, whose requests are rewritten."""
    adapter.install()
    exchange: Exchange = Exchanged(
        functools.partial(function, *args, **kwargs), rules=Rules(models.with_successor)
    )()
    return exchange


@pytest.mark.parametrize(
    ("model", "thinking"), [("deepseek-chat", "disabled"), ("deepseek-reasoner", "enabled")]
)
def test_a_retired_model_goes_out_as_its_successor(sandbox, model, thinking):
    """A retired model is replaced, with thinking set as it was, and the API accepts it."""
    assert rewritten(ask, sandbox.url, model).status == 200
    sent = sandbox.stats()["last_request_body"]
    assert (sent["model"], sent["thinking"]) == ("deepseek-flash", {"type": thinking})
    assert sent["messages"] == [{"role": "user", "content": "hi"}]


def test_a_current_model_goes_out_as_it_is(sandbox):
    """The bytes of a request with a current model are not touched."""
    rewritten(ask, sandbox.url, "deepseek-v4-pro")
    sent = sandbox.stats()["last_request_body"]
    assert sent["model"] == "deepseek-v4-pro"
    assert "thinking" not in sent


def test_thinking_that_the_client_sets_stays(sandbox):
    """A client that says itself whether to think is not overruled."""
    body = {"model": "deepseek-chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2000}
    body["thinking"] = {"type": "enabled"}
    url = f"{sandbox.url}/chat/completions"
    rewritten(requests.post, url, json=body, headers={"Authorization": "Bearer k"}, timeout=GIVE_UP_S)
    assert sandbox.stats()["last_request_body"]["thinking"] == {"type": "enabled"}


@pytest.mark.parametrize(
    "body",
    ['{"model": "x", "about": "deepseek-chat"}', '["deepseek-chat"]', "deepseek-chat", '{"model": 1}'],
)
def test_other_bodies_are_left_alone(body):
    """A body that merely mentions a retired model goes out byte by byte."""
    with responses.RequestsMock() as mock:
        mock.post(URL)
        rewritten(requests.post, URL, data=body)
        assert mock.calls[0].request.body in (body, body.encode())


def test_it_is_logged_once(sandbox, caplog, monkeypatch):
    """The replacement of a model is a warning, once per process."""
    monkeypatch.setattr(models, "_told", set())
    with caplog.at_level(logging.WARNING, "deepseek_client.models"):
        for _ in range(3):
            rewritten(ask, sandbox.url, "deepseek-chat")
    assert [record.getMessage() for record in caplog.records] == [
        "model deepseek-chat is retired: it goes out as deepseek-flash with thinking disabled"
    ]


def test_outside_of_exchanges_it_is_refused(sandbox):
    """Other code that asks for a retired model gets the API's 400."""
    assert ask(sandbox.url, "deepseek-chat").status_code == 400


@pytest.mark.parametrize(
    ("host", "model"),
    [
        ("api.deepseek.com", "deepseek-flash"),
        ("127.0.0.1:8000", "deepseek-flash"),
        ("gateway.example.test", "deepseek-chat"),
        ("api.deepseek.com.example.test", "deepseek-chat"),
        ("notdeepseek.com", "deepseek-chat"),
    ],
)
def test_only_deepseek_and_the_sandbox_are_rewritten(host, model):
    """Another provider may serve a model of the same name: its requests go out as they are."""
    with responses.RequestsMock() as mock:
        mock.post(f"http://{host}/v1/chat/completions")
        rewritten(ask, f"http://{host}/v1", "deepseek-chat")
        assert json.loads(mock.calls[0].request.body)["model"] == model


def random_bodies(dice: random.Random) -> Iterator[Any]:
    """Bodies as programs write them, and as they should not."""
    texts = ["x", "剑", 'say "model": "deepseek-chat", ', "}", "\\", "é\n", '"thinking"', ""]
    for _ in range(BODIES):
        fields: dict[str, Any] = {
            "model": dice.choice(["deepseek-chat", "deepseek-chat", "deepseek-reasoner", "x"])
        }
        for name in dice.sample(
            ["messages", "model2", "tools", "thinking", "n", "deepseek-chat"], dice.randint(0, 4)
        ):
            fields[name] = dice.choice(
                [
                    1.5,
                    None,
                    *texts,
                    [{"content": dice.choice(texts)}],
                    {"model": "deepseek-chat"},
                    {"type": "enabled"},
                ]
            )
        if dice.random() < 0.1:
            fields = dict(reversed(fields.items()))
        is_ascii, separators = dice.random() < 0.5, dice.choice([None, None, (",", ":")])
        text = json.dumps(
            fields, ensure_ascii=is_ascii, separators=separators, indent=dice.choice([None] * 9 + [2])
        )
        again = f'{text[:-1]}, "model": "deepseek-chat"}}'
        if dice.random() < 0.1:
            text = dice.choice(
                [text[:-1], text + " ", f" {text}", text.replace("{", '{"model": 1, ', 1), text + "}", again]
            )
        yield dice.choice([text, text.encode(), text.encode()])


def test_a_body_says_what_it_said_but_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of bodies each becomes what json makes of its changed fields; where json wrote it, byte for byte."""
    dice, spared = random.Random(SEED), 0
    dumps, written = json.dumps, list[Any]()
    for body in random_bodies(dice):
        request = requests.Request("POST", URL, data=body, headers={"X-Mine": "1"}).prepare()
        before = request.copy()
        with monkeypatch.context() as patch:
            written.clear()
            patch.setattr(json, "dumps", lambda fields: written.append(fields) or dumps(fields))
            sent = models.with_successor(request)
        assert (request.body, list(request.headers.items())) == (before.body, list(before.headers.items()))
        try:
            fields = json.loads(body)
        except ValueError:
            fields = {}
        if fields.get("model") not in models.RETIRED:
            assert sent is request
            continue
        expected = {**fields, "model": "deepseek-flash"}
        expected.setdefault("thinking", {"type": models.RETIRED[fields["model"]]})
        raw = sent.body
        assert isinstance(raw, bytes)
        assert list(json.loads(raw).items()) == list(expected.items())
        if body in (json.dumps(fields), json.dumps(fields).encode()):
            assert raw == json.dumps(expected).encode()
        spared += not written
        assert list(sent.headers.items()) == [
            (name, str(len(raw)) if name == "Content-Length" else value)
            for name, value in before.headers.items()
        ]
        assert (sent.method, sent.url, sent.hooks) == (before.method, before.url, before.hooks)
    assert BODIES / 10 < spared < BODIES / 2


def test_a_request_of_another_class_is_copied_by_itself() -> None:
    """A subclass that keeps more in a request than `requests` does copies that, too."""

    class Signed(requests.PreparedRequest):
        def copy(self) -> Signed:
            twin = Signed()
            vars(twin).update(vars(super().copy()), signature="of the copy")
            return twin

    request = Signed()
    request.prepare("POST", URL, json={"model": "deepseek-chat"})
    sent: Any = models.with_successor(request)
    assert (sent is request, sent.signature) == (False, "of the copy")
