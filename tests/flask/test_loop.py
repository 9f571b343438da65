"""Async views and hooks: their arguments, their errors, and what they see of their request."""

import asyncio
import contextvars
import threading

import flask
import pytest
from flask import Flask, g, request, session
from support.patience import GIVE_UP_S

from deepseek_client.flask import SharedLoop

tenant = contextvars.ContextVar("tenant", default="nobody")


@pytest.fixture
def app():
    """Any Flask app: nothing of this project but the loop."""
    app = Flask(__name__)
    app.secret_key = "of the test"
    SharedLoop(app)
    return app


def test_async_view(app, client):
    """An async view answers, with its arguments, on the loop's own thread."""

    @app.get("/hello/<name>")
    async def hello(name):
        await asyncio.sleep(0)
        return {"name": name, "thread": threading.current_thread().name}

    assert client.get("/hello/李").get_json() == {"name": "李", "thread": "shared-loop"}


def test_init_app():
    """SharedLoop().init_app(app) is the same as SharedLoop(app)."""
    app = Flask(__name__)
    SharedLoop().init_app(app)
    app.add_url_rule("/", view_func=_thread_name)
    assert app.test_client().get("/").text == "shared-loop"


async def _thread_name():
    return threading.current_thread().name


def test_sync_view_stays_in_its_thread(app, client):
    """A sync view of the same app runs where it always did."""
    app.add_url_rule("/", view_func=lambda: threading.current_thread().name)
    assert client.get("/").text == threading.current_thread().name


def test_hooks(app, client):
    """Async before_request, after_request and teardown_request run, around a sync view too."""
    torn_down = []

    @app.before_request
    async def before():
        g.seen = ["before"]

    @app.after_request
    async def after(response):
        response.headers["Seen"] = ",".join([*g.seen, "after"])
        return response

    @app.teardown_request
    async def teardown(error):
        torn_down.append(threading.current_thread().name)

    @app.get("/")
    def view():
        g.seen.append("view")
        return "x"

    assert client.get("/").headers["Seen"] == "before,view,after"
    assert torn_down == ["shared-loop"]


def test_async_error_handler(app, client):
    """An async error handler answers for an async view, and is given the very exception."""
    raised = KeyError("lost")

    @app.errorhandler(KeyError)
    async def handle(error):
        return {"same": error is raised}, 418

    @app.get("/")
    async def view():
        raise raised

    answer = client.get("/")
    assert (answer.status_code, answer.get_json()) == (418, {"same": True})


def test_abort(app, client):
    """flask.abort in an async view is answered as in a sync one."""

    @app.get("/")
    async def view():
        flask.abort(404)

    assert client.get("/").status_code == 404


def test_exception_keeps_its_traceback(app, client):
    """An exception that nobody handles comes out with the line of the async view that raised it."""
    app.testing = True

    @app.get("/")
    async def view_that_fails():
        raise ValueError("of the view")

    with pytest.raises(ValueError, match="of the view") as caught:
        client.get("/")
    assert "view_that_fails" in [entry.name for entry in caught.traceback]


def test_flask_globals(app, client):
    """request, g and session are those of the request in an async view, and what it sets in them stays."""

    @app.before_request
    def before():
        g.user = "韩立"

    @app.post("/<int:number>")
    async def view(number):
        await asyncio.sleep(0)
        session["visits"] = session.get("visits", 0) + 1
        return {
            "g": g.user,
            "json": request.json,
            "number": request.view_args["number"],
            "url": flask.url_for("view", number=number + 1),
            "visits": session["visits"],
            "app": flask.current_app.name,
        }

    expected = {"g": "韩立", "json": {"a": 1}, "number": 7, "url": "/8", "app": __name__}
    assert client.post("/7", json={"a": 1}).get_json() == {**expected, "visits": 1}
    assert client.post("/7", json={"a": 1}).get_json() == {**expected, "visits": 2}


def test_contextvars_go_both_ways(app, client):
    """A view sees what was set before it in the request's thread; what it sets is seen after it there."""
    seen = []

    @app.before_request
    def before():
        tenant.set("before")

    @app.get("/")
    async def view():
        seen.append(tenant.get())
        tenant.set("view")
        return "x"

    @app.after_request
    def after(response):
        seen.append(tenant.get())
        return response

    contextvars.copy_context().run(client.get, "/")
    assert seen == ["before", "view"]
    assert tenant.get() == "nobody"


def test_contextvars_of_a_view_that_fails(app, client):
    """What a view sets before it raises is seen by the error handler."""

    @app.get("/")
    async def view():
        tenant.set("failed")
        raise KeyError

    app.register_error_handler(KeyError, lambda error: tenant.get())
    assert contextvars.copy_context().run(client.get, "/").text == "failed"


def test_contextvars_do_not_leak(app):
    """What a view sets is not seen by the next request, from another thread, on the same loop."""

    @app.get("/<name>")
    async def view(name):
        before = tenant.get()
        tenant.set(name)
        return before

    def ask(name):
        answers = []
        thread = threading.Thread(target=lambda: answers.append(app.test_client().get(f"/{name}").text))
        thread.start()
        thread.join(GIVE_UP_S)
        return answers

    assert (ask("first"), ask("second")) == (["nobody"], ["nobody"])
