"""The one event loop of a process: who shares it, what it outlives, and what a fork makes of it."""

import asyncio
import concurrent.futures
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask, g, request
from support.patience import GIVE_UP_S

from deepseek_client.flask import SharedLoop
from deepseek_client.flask.loop import _process_loop


@pytest.fixture
def app():
    """Any Flask app: nothing of this project but the loop."""
    app = Flask(__name__)
    SharedLoop(app)
    return app


def where():
    """The loop and the thread that run this."""
    return {"loop": id(asyncio.get_running_loop()), "thread": threading.get_ident()}


async def meet(mine, other):
    """Returns once both events are set, of which this sets one."""
    mine.set()
    await asyncio.wait_for(other.wait(), GIVE_UP_S)
    return "met"


def test_view_that_cancels_itself(app, client):
    """A CancelledError that a view lets out is a 500 for its caller, and the loop goes on."""

    @app.get("/")
    async def view():
        raise asyncio.CancelledError

    @app.get("/next")
    async def following():
        return "x"

    assert client.get("/").status_code == 500
    assert client.get("/next").text == "x"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_process_wide_exception_of_a_view(app, client, kind):
    """An exception that means to end a thread ends the request's and not the loop's."""

    @app.get("/")
    async def view():
        raise kind

    @app.get("/next")
    async def following():
        return where()

    before = client.get("/next").get_json()
    with pytest.raises(kind):
        client.get("/")
    assert client.get("/next").get_json() == before


def test_requests_do_not_share_globals(app):
    """Two requests that are on the loop at the same moment each see their own request and g."""
    events = {"a": asyncio.Event(), "b": asyncio.Event()}

    @app.get("/<mine>/<other>")
    async def view(mine, other):
        g.name = mine
        await meet(events[mine], events[other])
        return {"g": g.name, "path": request.path}

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda path: app.test_client().get(path).get_json(), ("/a/b", "/b/a")))
    assert answers == [{"g": "a", "path": "/a/b"}, {"g": "b", "path": "/b/a"}]


def test_one_loop_for_all():
    """Every async view of every app, from every thread of a process, runs on one loop in one thread."""
    apps = [Flask(f"app{number}") for number in range(3)]
    for app in apps:
        SharedLoop(app)

        @app.get("/")
        async def view():
            return where()

    gate = threading.Barrier(12, timeout=GIVE_UP_S)

    def ask(number):
        gate.wait()
        return apps[number % 3].test_client().get("/").get_json()

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, range(12)))
    assert answers == [answers[0]] * 12
    assert [thread.name for thread in threading.enumerate()].count("shared-loop") == 1


def test_first_requests_start_one_loop():
    """Requests that come together as the first of a process start one loop between them."""

    def child():
        gate = threading.Barrier(8, timeout=GIVE_UP_S)
        loops = []

        def ask():
            gate.wait()
            loops.append(id(_process_loop()))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GIVE_UP_S)
        assert len(loops) == 8
        assert len(set(loops)) == 1

    assert exit_code_of_fork(child) == 0


def test_views_run_together(app):
    """Two async views wait for each other on the loop, which only concurrent ones can."""
    first, second = asyncio.Event(), asyncio.Event()

    @app.get("/first")
    async def view_first():
        return await meet(first, second)

    @app.get("/second")
    async def view_second():
        return await meet(second, first)

    with ThreadPoolExecutor(2) as threads:
        answers = threads.map(lambda path: app.test_client().get(path).text, ("/first", "/second"))
        assert list(answers) == ["met", "met"]


def test_asyncio_objects_live_between_requests(app, client):
    """A task and a lock that one request made are still good in the next one."""
    kept = {}

    @app.get("/make")
    async def make():
        kept["lock"] = asyncio.Lock()
        await kept["lock"].acquire()
        kept["task"] = asyncio.create_task(kept["lock"].acquire())
        return "x"

    @app.get("/use")
    async def use():
        kept["lock"].release()
        return {"acquired": await asyncio.wait_for(kept["task"], GIVE_UP_S)}

    client.get("/make")
    assert client.get("/use").get_json() == {"acquired": True}


def test_waiting_on_the_own_thread(app, client):
    """An async view that blocks on another async function gets a RuntimeError, not a deadlock."""

    async def other():
        return "never"

    @app.get("/")
    async def view():
        try:
            return app.ensure_sync(other)()
        except RuntimeError as exc:
            return str(exc)

    def child():
        message = "an async view cannot block on the event loop that runs it: await it instead"
        assert client.get("/").text == message

    # In a child, because a loop that waits for itself could not be freed.
    assert exit_code_of_fork(child) == 0


@pytest.mark.parametrize("times", [1, 2])
def test_under_a_running_loop(app, client, times):
    """The calling thread may have an event loop of its own running: the view still runs on the shared one."""

    @app.get("/")
    async def view():
        await asyncio.sleep(0)
        return where()

    async def ask():
        return where(), client.get("/").get_json()

    for _ in range(times):
        mine, its = asyncio.run(ask())
        assert mine["loop"] != its["loop"]
        assert mine["thread"] != its["thread"]


def test_interruption_cancels_the_view(app, client, monkeypatch):
    """When the request's thread is ended while it waits, the view's task is cancelled and not left running."""
    started, cancelled = threading.Event(), threading.Event()

    @app.get("/")
    async def view():
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def interrupted(future, timeout=None):
        assert started.wait(GIVE_UP_S)
        raise SystemExit("worker timeout")

    _process_loop()  # whose start waits for a future, too
    monkeypatch.setattr(concurrent.futures.Future, "result", interrupted)
    with pytest.raises(SystemExit, match="worker timeout"):
        client.get("/")
    assert cancelled.wait(GIVE_UP_S)


def exit_code_of_fork(function):
    """Runs the function in a forked child; 0 means that it returned."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    try:
        child.join(GIVE_UP_S)
        return child.exitcode
    finally:
        if child.is_alive():
            child.kill()
            child.join(GIVE_UP_S)
        child.close()


# Python 3.12 warns of any fork while threads run; that it is safe here is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def test_forked_child_has_its_own_loop(app, client):
    """A child forked after the first view answers on a loop of its own, and its parent's goes on."""

    @app.get("/")
    async def view():
        return where()

    before = client.get("/").get_json()
    parents_loop = _process_loop()

    def child():
        answer = client.get("/")
        assert answer.status_code == 200
        assert _process_loop() is not parents_loop
        assert [thread.name for thread in threading.enumerate()].count("shared-loop") == 1

    assert exit_code_of_fork(child) == 0
    assert client.get("/").get_json() == before


def test_fork_while_a_view_runs(app):
    """A child that is forked while the parent's loop is busy answers too, and the parent's view ends well."""
    started, release = threading.Event(), asyncio.Event()

    @app.get("/slow")
    async def slow():
        started.set()
        await asyncio.wait_for(release.wait(), GIVE_UP_S)
        return "slow"

    @app.get("/fast")
    async def fast():
        return "fast"

    def child():
        assert app.test_client().get("/fast").text == "fast"

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(app.test_client().get, "/slow")
        assert started.wait(GIVE_UP_S)
        code = exit_code_of_fork(child)
        _process_loop().call_soon_threadsafe(release.set)
        assert answer.result(GIVE_UP_S).text == "slow"
    assert code == 0


def test_grandchild(app):
    """A child of a child has its own loop too."""

    @app.get("/")
    async def view():
        return "x"

    def grandchild():
        assert app.test_client().get("/").text == "x"

    def child():
        grandchild()
        assert exit_code_of_fork(grandchild) == 0

    assert app.test_client().get("/").text == "x"
    assert exit_code_of_fork(child) == 0
