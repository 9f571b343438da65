"""What is given to DeepSeek by mistake, or forgotten, is refused by a sentence that says what to do."""

import pytest
from flask import Flask

from deepseek_client import ConfigError
from deepseek_client.flask import DeepSeek


class TheirClient:
    """A client that needs an object."""

    def chat(self, prompt):
        return {"text": prompt}


class ByItsClass:
    """A client that needs no object: its methods are called by the class."""

    def ask(prompt):
        return prompt

    @staticmethod
    def say(prompt):
        return prompt

    @classmethod
    def tell(cls, prompt):
        return prompt


def test_client_in_the_place_of_the_application():
    """The client without its name."""
    with pytest.raises(TypeError, match=r"got a TheirClient as the application: .*client=MyClient\(\)"):
        DeepSeek(TheirClient())


def test_class_in_the_place_of_an_object():
    """A class whose methods cannot be called without an object."""
    with pytest.raises(TypeError, match=r"the class TheirClient as client: .*client=TheirClient\(\), or"):
        DeepSeek(client=TheirClient)


def test_class_that_needs_no_object():
    """A class is a client where its methods are called by it."""
    llm = DeepSeek(Flask("theirs"), client=ByItsClass)
    calls = [llm.client.ask_async("a"), llm.client.say_async("b"), llm.client.tell_async("c")]
    assert [llm.wait(call) for call in calls] == ["a", "b", "c"]


def test_metrics_path_without_a_slash():
    """A path that no request has."""
    with pytest.raises(ConfigError, match=r"metrics_path='metrics': need a path that begins with a slash"):
        DeepSeek(metrics_path="metrics")


def test_init_app_that_was_forgotten():
    """Where no application was made yet, as in another program's worker."""
    with pytest.raises(RuntimeError, match=r"^DeepSeek\.init_app was not called: import the module"):
        _ = DeepSeek(client=TheirClient()).client


def test_setting_with_a_typo(caplog):
    """A name in app.config that is nearly one of ours is named with it; what is somebody else's is left alone."""
    app = Flask("theirs")
    app.config.update(
        LLM_MAX_WORKER=20, LLM_DEADLINE=60, LLM_MODEL="m", LLM_MAX_ATTEMPTS_OF_THEIRS=3, LLM_ENGINES=""
    )
    app.config.update(LLM_ENGINE="threads")
    DeepSeek(app, client=TheirClient())
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "LLM_DEADLINE in app.config is no setting and does nothing: LLM_DEADLINE_S may be meant",
        "LLM_MAX_WORKER in app.config is no setting and does nothing: LLM_MAX_WORKERS may be meant",
    ]
