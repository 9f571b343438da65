import asyncio
import functools
import threading
from asyncio import gather
from types import SimpleNamespace

import pytest
from flask import Flask, g
from flask.views import MethodView

from deepseek_client import DeepSeekError, events
from deepseek_client.flask import DeepSeek, rollback
from deepseek_client.flask.loop import _process_loop


def where():
    """The thread that runs this, and whether it has an event loop there."""
    return [threading.current_thread().name, asyncio._get_running_loop() is not None]


@pytest.fixture
def llm():
    """The extension over a client that says where it is called."""
    return DeepSeek(client=SimpleNamespace(ask=lambda prompt: where()), errors="raise")


@pytest.fixture
def app(llm):
    """An application that was rolled back."""
    app = Flask("theirs")
    app.config["USE_ASYNC_DEEPSEEK"] = "0"
    llm.init_app(app)
    return app


@pytest.fixture
def shared_loop_is_idle():
    """No view of the test runs on the loop that requests share."""
    tasks = []
    loop = _process_loop()
    loop.call_soon_threadsafe(loop.set_task_factory, lambda loop, coro, **kw: tasks.append(coro))
    yield
    loop.call_soon_threadsafe(loop.set_task_factory, None)
    assert tasks == []


async def fan_out(llm):
    """A helper of the application's that needs a loop."""
    return await asyncio.gather(llm.client.ask_async("a"), llm.client.ask_async("b"))


class Service:
    """An object of the application's whose method needs a loop."""

    async def ask(self, llm):
        return await asyncio.wait_for(llm.client.ask_async("a"), 5)


service = Service()


def decorated(view):
    """A decorator that awaits."""

    @functools.wraps(view)
    async def wrapper():
        return await view()

    return wrapper


class TestPlain:
    """Views that await calls and nothing else."""

    def test_async_view(self, app, llm, shared_loop_is_idle):
        """It runs in the request's own thread without any event loop, and so does its call."""

        @app.get("/")
        async def view():
            with pytest.raises(RuntimeError, match="no running event loop"):
                asyncio.get_running_loop()
            return {"view": where(), "call": (await llm.client.ask_async("x"))}

        mine = [threading.current_thread().name, False]
        assert app.test_client().get("/").get_json() == {"view": mine, "call": mine}

    def test_wait(self, app, llm, shared_loop_is_idle):
        """llm.wait does the same in a plain view."""
        app.add_url_rule("/", view_func=lambda: llm.wait(llm.client.ask_async("x")))
        assert app.test_client().get("/").get_json() == [threading.current_thread().name, False]

    def test_hooks_and_handlers(self, app, llm, shared_loop_is_idle):
        """Async hooks and error handlers of the application run as its views do, over the same globals."""

        @app.before_request
        async def before():
            g.seen = where()

        @app.errorhandler(KeyError)
        async def handle(error):
            return [g.seen, where()]

        @app.get("/")
        async def view():
            await asyncio.sleep(0)
            raise KeyError

        mine = [threading.current_thread().name, False]
        assert app.test_client().get("/").get_json() == [mine, mine]

    def test_failure(self, app):
        """A call that fails raises in the view what it raises elsewhere."""

        def fail():
            raise DeepSeekError("of the client")

        other = DeepSeek(app, client=SimpleNamespace(ask=fail))

        @app.get("/")
        async def view():
            try:
                await other.client.ask_async()
            except DeepSeekError as exc:
                return str(exc)

        assert app.test_client().get("/").text == "of the client"

    def test_mode(self, app, llm):
        """The calls are reported as made in their callers' threads."""
        seen = []
        events.subscribe(seen.append)
        try:
            llm.wait(llm.client.ask_async("x"))
        finally:
            events.unsubscribe(seen.append)
        assert [event.mode for event in seen if isinstance(event, events.CallFinished)] == ["sync"]


class TestLoop:
    """Views that need an event loop get one of their own, in the request's thread."""

    MINE = property(lambda self: [threading.current_thread().name, True])

    def answer(self, app, view):
        app.add_url_rule("/", view_func=view)
        return app.test_client().get("/").get_json()

    def test_own_code(self, app, llm, shared_loop_is_idle):
        """Which its own code tells."""

        async def view():
            await asyncio.sleep(0.001)
            return await llm.client.ask_async("x")

        assert self.answer(app, view) == self.MINE

    def test_name_from_asyncio(self, app, llm, shared_loop_is_idle):
        """Which a name that was imported from asyncio tells."""

        async def view():
            return (await gather(llm.client.ask_async("x")))[0]

        assert self.answer(app, view) == self.MINE

    def test_import_inside(self, app, llm):
        """Which an import inside the view tells."""

        async def view():
            from asyncio import wait_for as within

            return await within(llm.client.ask_async("x"), 5)

        assert self.answer(app, view) == self.MINE

    def test_nested_code(self, app, llm):
        """Which a function inside of the view tells."""

        async def view():
            async def inner():
                return await asyncio.gather(llm.client.ask_async("x"))

            return (await inner())[0]

        assert self.answer(app, view) == self.MINE

    def test_helper(self, app, llm):
        """Which a function that it names tells."""

        async def view():
            return await fan_out(llm)

        assert self.answer(app, view) == [self.MINE] * 2

    def test_object(self, app, llm):
        """Which a method of an object that it names tells."""

        async def view():
            return await service.ask(llm)

        assert self.answer(app, view) == self.MINE

    def test_decorator(self, app, llm):
        """Which the view below its decorator tells."""

        @decorated
        async def view():
            return (await asyncio.gather(llm.client.ask_async("x")))[0]

        assert self.answer(app, view) == self.MINE

    def test_method_view(self, app, llm):
        """Which another method of its class tells."""

        class Chat(MethodView):
            async def get(self):
                return await self.ask()

            async def ask(self):
                return (await asyncio.gather(llm.client.ask_async("x")))[0]

        assert self.answer(app, Chat.as_view("chat")) == self.MINE

    def test_coroutine_of_wait(self, app, llm):
        """Which the coroutine that is waited for tells, in a plain view, too."""
        assert self.answer(app, lambda: llm.wait(fan_out(llm))) == [self.MINE] * 2

    def test_coroutine_of_asyncio(self, app, llm, caplog):
        """Which a coroutine of asyncio's own tells, around a call, without a first request that fails."""
        app.add_url_rule("/", view_func=lambda: llm.wait(asyncio.wait_for(llm.client.ask_async("x"), 5)))
        assert app.test_client().get("/").get_json() == self.MINE
        assert "needs an event loop" not in caplog.text

    def test_globals(self, app, llm):
        """What it sets in flask.g and in contextvars is seen after it."""

        @app.after_request
        def after(response):
            response.headers["Seen"] = g.seen
            return response

        async def view():
            await asyncio.sleep(0)
            await asyncio.gather(llm.client.ask_async("x"))
            g.seen = "set"
            return {}

        self.answer(app, view)
        assert app.test_client().get("/").headers["Seen"] == "set"

    def test_learned(self, app, caplog):
        """Where no code tells, the first request fails, and a line says that the next ones have a loop."""
        hidden = {"sleep": asyncio.sleep}

        async def view():
            await hidden["sleep"](0.001)
            return where()

        app.add_url_rule("/", view_func=view)
        assert app.test_client().get("/").status_code == 500
        assert "view needs an event loop: from now on it has its own" in caplog.text
        assert app.test_client().get("/").get_json() == self.MINE

    def test_future_of_nobody(self, app):
        """A view that waits for what no loop will bring is told so, instead of waiting for ever."""
        loop = asyncio.new_event_loop()
        future = loop.create_future()
        loop.close()

        async def view():
            await future

        app.testing = True
        app.add_url_rule("/", view_func=view)
        with pytest.raises(RuntimeError, match="no running event loop"):
            app.test_client().get("/")


def test_library_is_not_searched(app, llm, monkeypatch):
    """A call of the library's own is stepped at once: its code is not looked through at each request."""
    monkeypatch.setattr(rollback, "_names_what_needs_a_loop", lambda values: pytest.fail("searched"))
    assert llm.wait(llm.client.ask_async("x")) == [threading.current_thread().name, False]
