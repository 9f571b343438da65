"""What a view gets for a call that failed, as README says it: by the client's own habits, and by errors=."""

import pytest
import requests
from flask import Flask

from deepseek_client import call_options
from deepseek_client.flask import DeepSeek


class Raises:
    """A client that raises what `requests` raises."""

    def __init__(self, url):
        self.url = url

    def chat(self, prompt):
        body = {"model": "deepseek-chat", "messages": [{"role": "user", "content": prompt}]}
        headers = {"Authorization": "Bearer sk-test"}
        reply = requests.post(f"{self.url}/chat/completions", json=body, headers=headers, timeout=5)
        reply.raise_for_status()
        return {"text": reply.json()["choices"][0]["message"]["content"]}


class Returns(Raises):
    """One that has a result of its own for each failure."""

    def chat(self, prompt):
        try:
            return super().chat(prompt)
        except requests.RequestException:
            return {"text": "", "sorry": True}


@pytest.fixture
def answer(sandbox, tmp_path, monkeypatch):
    """Makes a call that fails once, in an application over this client; gives the answer to the request."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_MAX_ATTEMPTS", "1")

    def ask(client, deadline_s=None, **options):
        app = Flask("theirs")
        app.testing = True
        llm = DeepSeek(app, client=client(sandbox.url), **options)

        @app.post("/talk")
        def talk():
            with call_options(deadline_s=deadline_s):
                return llm.wait(llm.client.chat_async("x"))

        sandbox.script([{"fault": "status", "status": 503}])
        return app.test_client().post("/talk")

    return ask


def test_clients_own_result(answer):
    """By default the view gets what the client itself returned."""
    assert answer(Returns).get_json() == {"text": "", "sorry": True}


def test_clients_own_exception(answer):
    """By default the view gets what the client itself raised."""
    with pytest.raises(requests.HTTPError):
        answer(Raises)


def test_call_that_was_never_made(answer, sandbox):
    """By default it gives the legacy client's blank; no request went out."""
    assert answer(Returns, deadline_s=0).get_json() == {"text": ""}
    assert sandbox.stats()["requests"] == 0


@pytest.mark.parametrize("client", [Raises, Returns])
def test_errors_raise(answer, client):
    """With errors="raise" the request is answered with the failure's status, sentence and code, in both cases."""
    answered = answer(client, errors="raise")
    assert (answered.status_code, answered.get_json().keys()) == (502, {"error", "code", "text"})
    assert answered.get_json()["code"] == "upstream_unavailable"


class Text(Raises):
    """One that gives the text alone."""

    def chat(self, prompt):
        return super().chat(prompt)["text"]


@pytest.mark.parametrize(
    ("client", "options", "warnings"),
    [(Text, {}, 1), (Text, {"errors": "raise"}, 0), (Returns, {}, 0)],
    ids=["text", "raise", "blank_fits"],
)
def test_blank_that_fits_no_answer(sandbox, caplog, client, options, warnings):
    """The log says once that a call that is never made gives something else than the client does."""
    app = Flask("theirs")
    llm = DeepSeek(app, client=client(sandbox.url), **options)
    with app.app_context():
        for _ in range(2):
            assert llm.wait(llm.client.chat_async("x"))
    assert caplog.text.count("the client's chat gives a str, but a call that is never made") == warnings
    assert caplog.text.count("but a call that is never made") == warnings
