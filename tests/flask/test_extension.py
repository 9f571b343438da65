import asyncio
import contextvars
import os
from types import SimpleNamespace

import flask_restful
import pytest
from flask import Blueprint, Flask, g
from flask.views import MethodView
from flask_cors import cross_origin
from flask_socketio import SocketIO
from support.clients import TheirClient

from deepseek_client import (
    AsyncDeepSeekClient,
    AsyncFacade,
    ConfigError,
    DeepSeekError,
    events,
)
from deepseek_client.flask import DeepSeek, sources

tenant = contextvars.ContextVar("tenant", default="nobody")


def chat_view(llm):
    """The default recipe: a plain view."""

    def view():
        return llm.wait(llm.client.chat_async("x"))

    return view


class TestSettings:
    """app.config, then the environment, then `.env` of the working directory."""

    @pytest.fixture(autouse=True)
    def directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / ".env").write_text("LLM_MAX_WORKERS=2\nLLM_QUEUE_LIMIT=20\nLLM_DEADLINE_S=2\nBROKEN\n")
        monkeypatch.setenv("LLM_QUEUE_LIMIT", "30")
        monkeypatch.setenv("LLM_DEADLINE_S", "3")

    def settings(self, **config):
        app = Flask("theirs")
        app.config.update(config)
        return DeepSeek(app).settings

    def test_order(self):
        """The application's config wins over the environment, which wins over `.env`, which stays in its file."""
        seen = self.settings(LLM_DEADLINE_S="4")
        assert (seen.max_workers, seen.queue_limit, seen.deadline_s) == (2, 30, 4.0)
        assert "LLM_MAX_WORKERS" not in os.environ

    @pytest.mark.parametrize(
        ("worker", "is_async"),
        [(None, True), ({}, False), ({"USE_ASYNC_DEEPSEEK": "1"}, True)],
        ids=["no_worker", "worker", "raw_env"],
    )
    def test_switch_that_gunicorns_configuration_loaded(self, tmp_path, monkeypatch, worker, is_async):
        """In a gunicorn worker the switch of `.env` wins over one that came after the start, not over `raw_env`."""
        (tmp_path / ".env").write_text("USE_ASYNC_DEEPSEEK=0\n")
        monkeypatch.setenv("USE_ASYNC_DEEPSEEK", "1")
        found = worker if worker is None else SimpleNamespace(cfg=SimpleNamespace(env=worker))
        monkeypatch.setattr(sources, "gunicorn_worker", lambda: found)
        assert self.settings().use_async is is_async

    def test_types(self):
        """A value of app.config may be a number or a flag, too; a blank or missing one is none."""
        seen = self.settings(
            LLM_MAX_WORKERS=7, LLM_DEADLINE_S=1.5, USE_ASYNC_DEEPSEEK=False, LLM_QUEUE_LIMIT=""
        )
        assert (seen.max_workers, seen.deadline_s, seen.use_async, seen.queue_limit) == (7, 1.5, False, 30)
        assert self.settings(LLM_MAX_WORKERS=None).max_workers == 2

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("five", "LLM_MAX_WORKERS='five': need a whole number from 1 to 1000"),
            (0, "LLM_MAX_WORKERS='0': need a whole number from 1 to 1000"),
            ([5], "LLM_MAX_WORKERS in app.config is a list: need a text or a number"),
        ],
    )
    def test_wrong_value(self, value, message):
        """A wrong value is refused by its name and value when the application starts."""
        with pytest.raises(ConfigError, match=message.replace("(", ".")):
            self.settings(LLM_MAX_WORKERS=value)

    def test_env_file_that_cannot_be_read(self, tmp_path):
        """A `.env` that cannot be read ends the start: the service would run without what stands there."""
        (tmp_path / ".env").write_bytes(b"LLM_MAX_WORKERS=\xff\n")
        with pytest.raises(ConfigError, match=r"\.env cannot be read: it is not UTF-8"):
            self.settings()


@pytest.mark.parametrize(
    ("client", "kind"),
    [
        (None, AsyncDeepSeekClient),
        (TheirClient(), AsyncDeepSeekClient),
        (SimpleNamespace(parse=lambda utterance, ctx: {}), AsyncDeepSeekClient),
        (SimpleNamespace(ask=lambda prompt: prompt), AsyncFacade),
        (SimpleNamespace(chat=SimpleNamespace(completions=None)), AsyncFacade),
    ],
    ids=["none", "chat", "parse", "neither", "chat_that_is_no_method"],
)
def test_kind_of_client(client, kind):
    """A client with the method chat or parse is wrapped as DeepSeek's, any other as it is."""
    assert type(DeepSeek(Flask("theirs"), client=client).client) is kind


def test_client_that_is_wrapped_already():
    """A facade is taken as it is."""
    facade = AsyncFacade(TheirClient())
    assert DeepSeek(Flask("theirs"), client=facade).client is facade


class TestApplications:
    """Which application's client is meant."""

    def test_factories_and_blueprints(self, llm):
        """A module's extension serves a Blueprint of every application that a factory makes, with its own settings."""
        routes = Blueprint("routes", __name__)
        routes.add_url_rule("/", view_func=lambda: {"workers": llm.settings.max_workers, **chat_view(llm)()})

        def create_app(workers):
            app = Flask("made")
            app.config["LLM_MAX_WORKERS"] = workers
            llm.init_app(app)
            app.register_blueprint(routes)
            return app

        apps = [create_app(3), create_app(4)]
        answers = [app.test_client().get("/").get_json() for app in apps]
        assert answers == [{"workers": 3, "text": "their x"}, {"workers": 4, "text": "their x"}]
        assert [app.extensions["deepseek"] for app in apps] == [llm, llm]
        with pytest.raises(
            RuntimeError, match=r"2 applications with different settings .* need an application"
        ):
            _ = llm.client

    def test_outside_of_a_context(self, app, llm):
        """With one application, or several alike, its client is to be had anywhere: in a thread, a job, a command."""
        assert llm.wait(llm.client.chat_async("x")) == {"text": "their x"}
        assert app.extensions["deepseek"] is llm
        llm.init_app(Flask("of the next test"))
        assert llm.wait(llm.client.chat_async("y")) == {"text": "their y"}

    def test_foreign_application(self, llm):
        """An application that was never given to init_app is told so."""
        with (
            Flask("stranger").app_context(),
            pytest.raises(RuntimeError, match=r"not called for .* 'stranger'"),
        ):
            _ = llm.settings

    def test_second_client(self, app, llm):
        """A second extension of one application is a second client, and doubles no feature."""
        other = DeepSeek(app, client=SimpleNamespace(ask=lambda: "other"))
        app.add_url_rule("/", view_func=lambda: llm.wait(other.client.ask_async()))
        seen = []
        events.subscribe(seen.append)
        try:
            answer = app.test_client().get("/")
        finally:
            events.unsubscribe(seen.append)
        assert (answer.text, app.extensions["deepseek"]) == ("other", llm)
        assert len(answer.headers.getlist("X-Request-ID")) == 1

    def test_init_app_twice(self, app, llm):
        """The same extension given to an application twice is there once."""
        llm.init_app(app)
        before = len(app.before_request_funcs[None])
        llm.init_app(app)
        assert len(app.before_request_funcs[None]) == before


class TestWait:
    """llm.wait in whatever blocks."""

    def test_plain_view(self, app, llm):
        """The call runs on the pool."""
        app.add_url_rule("/", view_func=chat_view(llm))
        assert app.test_client().get("/").get_json() == {"text": "their x"}
        assert llm._wrapped.threads[0].startswith("llm-worker")

    def test_method_view(self, app, llm):
        """A MethodView answers by it, in a plain and in an async method."""

        class Both(MethodView):
            def get(self):
                return llm.wait(llm.client.chat_async("get"))

            async def post(self):
                return await llm.client.chat_async("post")

        app.add_url_rule("/", view_func=Both.as_view("both"))
        client = app.test_client()
        assert (client.get("/").get_json()["text"], client.post("/").get_json()["text"]) == (
            "their get",
            "their post",
        )

    def test_resource(self, app, llm):
        """A Resource of Flask-RESTful, whose methods are never awaited, answers by it."""

        class Chat(flask_restful.Resource):
            def get(self):
                return llm.wait(llm.client.chat_async("x"))

        flask_restful.Api(app).add_resource(Chat, "/chat")
        assert app.test_client().get("/chat").get_json() == {"text": "their x"}

    def test_decorator_that_does_not_await(self, app, llm):
        """A view below a decorator that only calls it answers by it."""
        app.add_url_rule("/", view_func=cross_origin()(chat_view(llm)))
        answer = app.test_client().get("/", headers={"Origin": "http://elsewhere"})
        assert (answer.get_json(), answer.headers["Access-Control-Allow-Origin"]) == (
            {"text": "their x"},
            "http://elsewhere",
        )

    def test_socketio(self, app, llm):
        """A handler of Flask-SocketIO in threading mode answers by it."""
        socketio = SocketIO(app, async_mode="threading")
        socketio.on_event("chat", lambda prompt: llm.wait(llm.client.chat_async(prompt)))
        client = socketio.test_client(app)
        assert client.emit("chat", "x", callback=True) == {"text": "their x"}

    def test_contextvars(self, app, llm):
        """The coroutine sees the caller's contextvars and Flask's globals; what it sets comes back."""

        async def view_part():
            seen = (tenant.get(), g.user)
            tenant.set("of the coroutine")
            await llm.client.chat_async("x")
            return seen

        @app.get("/")
        def view():
            tenant.set("of the view")
            g.user = "韩立"
            return [*llm.wait(view_part()), tenant.get()]

        answer = contextvars.copy_context().run(app.test_client().get, "/")
        assert answer.get_json() == ["of the view", "韩立", "of the coroutine"]

    def test_on_an_event_loop(self, app, llm):
        """On a thread that runs a loop it refuses, and closes the coroutine, instead of blocking the loop."""
        coroutines = []

        @app.get("/")
        async def view():
            coroutines.append(llm.client.chat_async("x"))
            llm.wait(coroutines[0])

        app.testing = True
        with pytest.raises(RuntimeError, match="await it instead"):
            app.test_client().get("/")
        with pytest.raises(RuntimeError, match="cannot reuse"):
            coroutines[0].send(None)

    def test_any_awaitable(self, app, llm):
        """What can be awaited is waited for, a coroutine or not."""

        class Later:
            def __await__(self):
                return asyncio.sleep(0, "later").__await__()

        assert llm.wait(Later()) == "later"

    def test_what_is_no_awaitable(self, app, llm):
        """The result of a blocking method, given by mistake, is refused with a hint."""
        with pytest.raises(TypeError, match="got a dict: need what an async method gives"):
            llm.wait(llm.client.chat("x"))


class TestSwitches:
    """Each feature by itself."""

    def bare(self, **switches):
        app = Flask("bare")
        names = [
            "shared_loop",
            "request_ids",
            "log_lines",
            "metrics",
            "json_problems",
            "rollback",
            "graceful_stop",
        ]
        llm = DeepSeek(app, client=TheirClient(), **{**dict.fromkeys(names, False), **switches})
        app.add_url_rule("/", view_func=chat_view(llm))
        return app, llm

    def test_all_off(self):
        """With everything off the application is as it was, and llm.wait works."""
        app, _ = self.bare()
        answer = app.test_client().get("/")
        assert (answer.get_json(), "X-Request-ID" in answer.headers) == ({"text": "their x"}, False)
        assert app.test_client().get("/metrics").status_code == 404
        assert "async_to_sync" not in vars(app)
        assert DeepSeekError not in app.error_handler_spec[None][None]
        assert not app.before_request_funcs

    def test_rollback_off(self):
        """Without the rollback USE_ASYNC_DEEPSEEK=0 is not obeyed."""
        app = Flask("theirs")
        app.config["USE_ASYNC_DEEPSEEK"] = "0"
        assert DeepSeek(app, client=TheirClient(), rollback=False).settings.use_async
        assert not DeepSeek(app, client=TheirClient()).settings.use_async

    def test_own_bridge(self):
        """An application that runs async views in its own way goes on doing so."""

        class Theirs(Flask):
            def async_to_sync(self, func):
                return lambda *args, **kwargs: "their bridge"

        app = Theirs("theirs")
        DeepSeek(app, client=TheirClient())

        @app.get("/")
        async def view():
            return "ours"

        assert app.test_client().get("/").text == "their bridge"


SAY = """
import logging, sys
from flask import Flask
from types import SimpleNamespace
from deepseek_client.flask import DeepSeek
{before}
app = Flask("theirs")
app.config["DEEPSEEK_API_KEY"] = "sk-0123456789"
llm = DeepSeek(app, client=SimpleNamespace(chat=lambda prompt: {{"text": prompt}}))
{after}
llm.wait(llm.client.chat_async("x"))
logging.getLogger("deepseek_client").warning("with sk-0123456789")
"""
CONFIGURE = "logging.basicConfig(format='theirs %(name)s %(message)s', stream=sys.stderr)"


@pytest.mark.parametrize("place", ["nowhere", "before", "after"])
def test_log_lines(run_python, place):
    """A deployment that configured no logging sees masked lines; one that did sees each once, in its own format."""
    script = SAY.format(**{"before": "", "after": "", place: CONFIGURE})
    lines = run_python(script).stderr.splitlines()
    assert len(lines) == 2
    assert "method=chat" in lines[0]
    assert all(line.startswith("theirs") for line in lines) is (place != "nowhere")
    assert ("sk-0123456789" in lines[1]) is (place != "nowhere")


DICT_CONFIG = """
from logging.config import dictConfig
root = {"handlers": ["out"], "level": "INFO"}
dictConfig({"version": 1, "handlers": {"out": {"class": "logging.StreamHandler"}}, "root": root})
"""


@pytest.mark.parametrize(
    ("more", "lines"), [("", 2), ("logging.getLogger('deepseek_client.calls').disabled = True", 1)]
)
def test_loggers_that_were_there(run_python, more, lines):
    """What `dictConfig` disabled because it was there writes its lines; what the application disables does not."""
    before = f"{'' if more else DICT_CONFIG}{CONFIGURE}\n{more}"
    assert len(run_python(SAY.format(before=before, after="")).stderr.splitlines()) == lines


@pytest.mark.parametrize(
    ("own", "verbose", "level"),
    [("NOTSET", "0", "INFO"), ("NOTSET", "1", "DEBUG"), ("ERROR", "1", "ERROR")],
)
def test_level(run_python, own, verbose, level):
    """The library's logger gets a level where it has none."""
    script = SAY.format(before=f"logging.getLogger('deepseek_client').setLevel('{own}')", after="")
    script += "print(logging.getLevelName(logging.getLogger('deepseek_client').level))"
    assert run_python(script, DEEPSEEK_VERBOSE=verbose).stdout.split() == [level]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a process proves itself by /proc")
@pytest.mark.parametrize(("options", "restored"), [("", True), ("rollback=False", False)])
def test_testimony_that_is_lost(run_python, options, restored):
    """A request brings a lost testimony back, and none that the application has not asked for."""
    script = f"""
import os, shutil
from flask import Flask
from deepseek_client.flask import DeepSeek
app = Flask(__name__)
DeepSeek(app, {options})
shutil.rmtree(".deepseek", ignore_errors=True)
app.test_client().get("/")
print(os.path.isdir(".deepseek") and len(os.listdir(".deepseek")) == 1)
"""
    assert run_python(script).stdout == f"{restored}\n"
