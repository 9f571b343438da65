"""Every piece of Python in the documents, run; every recipe before its change, after it, and rolled back."""

import ast
import asyncio
import inspect
import json
import re
import subprocess
import sys
import threading
import types
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager

import openai
import pytest
import requests
from flask import Flask
from support.documents import CHINESE, DOCUMENTS, LIBRARY, README, ROOT, blocks
from support.patience import GIVE_UP_S

from deepseek_client import AsyncDeepSeekClient, AsyncFacade, DeadlineExceeded, call_options
from deepseek_client.flask import DeepSeek


def answer_to(prompt):
    """The sandbox's answer."""
    return {"text": f"沙盒已收到：「{prompt}」"}


DIFFS = blocks(README, "diff")
SHAPES = [block.heading for block in DIFFS]
SEVERAL = "Several prompts in one request"
SOCKETIO = "Flask-SocketIO"
STREAMS = "Streams"

PYTHON = [block for document in DOCUMENTS if document != CHINESE for block in blocks(document, "python")]
HELLO, ONE, TWO, THREE = (answer_to(prompt) for prompt in ("你好", "一", "二", "三"))
# What the pieces of Python print, by their heading in the library's README and in their order there.
PRINTED = {
    "Without a web framework": [[HELLO, [ONE, TWO, THREE]], [[ONE, TWO]]],
    "A client of your own": [[HELLO, HELLO]],
    "Any other client": [[HELLO, True], [HELLO]],
    "Clients that are not thread-safe": [[HELLO]],
    "Clients with paths": [["沙盒已收到：「你好」"]],
    "Streams": [["沙盒已收到：「你好」"], ["沙盒已收到：「你好」"]],
    "A deadline for some calls": [[HELLO]],
    "Calls on the event loop": [[[ONE, TWO]]],
    "The sandbox": [[HELLO, 2]],
}
HOW_IT_ENDS = (LIBRARY, "How a call of any other client ends")
RUN_BY_ITSELF = {
    (README, "What `AsyncFacade` does not do"),
    (LIBRARY, "Logging"),
    (LIBRARY, "New Relic"),
    HOW_IT_ENDS,
}


def side(block, mark):
    """The code of a diff: "-" before the change, "+" after it."""
    lines = [line for line in block.text.splitlines() if not line or line[0] in (" ", mark)]
    return "\n".join(line[1:] for line in lines)


def code_of(block, mark):
    """The application of a recipe; one that builds none has the beginning of the first one's."""
    code = side(block, mark)
    if "Flask(" in code:
        return code
    return f"{side(DIFFS[0], mark).partition('@app')[0]}\n{code}"


def run(code, block, **names):
    """Runs the code, which may await at its top as in `python -m asyncio`, and gives the names that it knows then."""
    names["__name__"] = "recipe"
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    compiled = compile(code, f"{block.document}:{block.line}", "exec", flags=flags, dont_inherit=True)
    if compiled.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(compiled, names))
    else:
        exec(compiled, names)
    return names


@pytest.fixture
def threads():
    """The names of the threads that the reader's client was called in."""
    return []


@pytest.fixture(autouse=True)
def the_readers_modules(sandbox, threads, tmp_path, monkeypatch):
    """`my_client` and `my_functions`: what a reader has, over the sandbox; in a directory without `.env`."""

    def ask(prompt, key="sk-test"):
        threads.append(threading.current_thread().name)
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "deepseek-flash", "thinking": {"type": "disabled"}, "messages": messages}
        headers = {"Authorization": f"Bearer {key}"}
        reply = requests.post(f"{sandbox.url}/chat/completions", json=body, headers=headers, timeout=5)
        return {"text": reply.json()["choices"][0]["message"]["content"]}

    class MyClient:
        def __init__(self, key="sk-test"):
            self.key = key

        def chat(self, prompt):
            return ask(prompt, self.key)

        ask = chat

    class SessionClient(MyClient):
        def __init__(self):
            super().__init__()
            self.owner = None

        def chat(self, prompt):
            self.owner = self.owner or threading.get_ident()
            assert self.owner == threading.get_ident(), "two threads share one client"
            return ask(prompt)

    modules = {
        "my_client": {"MyClient": MyClient, "SessionClient": SessionClient},
        "my_functions": {"ask": ask},
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    for name in ("DEEPSEEK", "OPENAI"):
        monkeypatch.setenv(f"{name}_BASE_URL", sandbox.url)
        monkeypatch.setenv(f"{name}_API_KEY", "sk-test")
    monkeypatch.setattr("deepseek_client.deepseek._default", None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def openai_clients(threads, monkeypatch):
    """OpenAI's clients note the thread of each call, and are closed, which no recipe does."""
    made = []

    class OpenAI(openai.OpenAI):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

        def request(self, *args, **kwargs):
            threads.append(threading.current_thread().name)
            return super().request(*args, **kwargs)

    monkeypatch.setattr(openai, "OpenAI", OpenAI)
    yield
    for client in made:
        client.close()


def answer_of(shape, names):
    """What the recipe's application answers to 甲."""
    app = names.get("app") or names["create_app"]()
    app.testing = True
    if shape == SOCKETIO:
        return names["socketio"].test_client(app).emit("talk", "甲", callback=True)
    body = {"prompts": ["甲", "甲"]} if shape == SEVERAL else {"prompt": "甲"}
    answer = app.test_client().post("/talk", json=body, headers={"X-Key": "sk-other"})
    return answer.get_json() if shape != STREAMS else {"text": text_of(answer.text)}


def text_of(sent):
    """What the events of a stream say together."""
    chunks = [json.loads(event) for event in re.findall(r"^data: (\{.*)$", sent, re.MULTILINE)]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


@pytest.mark.parametrize("block", DIFFS, ids=SHAPES)
class TestRecipes:
    """A diff of README, as an application over the sandbox."""

    def expected(self, block):
        answer = answer_to("甲")
        return [answer, answer] if block.heading == SEVERAL else answer

    def test_before(self, block, threads):
        """What the recipe begins with is an application that answers, in the request's thread."""
        assert answer_of(block.heading, run(code_of(block, "-"), block)) == self.expected(block)
        assert not any(name.startswith("llm-worker") for name in threads)

    def test_after(self, block, threads):
        """What it ends with answers the same, and its calls run on the pool."""
        assert answer_of(block.heading, run(code_of(block, "+"), block)) == self.expected(block)
        assert threads
        assert all(name.startswith("llm-worker") for name in threads)

    def test_rolled_back(self, block, threads, monkeypatch):
        """Under USE_ASYNC_DEEPSEEK=0 it answers the same, and its calls run in the request's thread."""
        monkeypatch.setenv("USE_ASYNC_DEEPSEEK", "0")
        assert answer_of(block.heading, run(code_of(block, "+"), block)) == self.expected(block)
        assert threads
        assert not any(name.startswith("llm-worker") for name in threads)

    def test_ten_lines(self, block):
        """The change is ten lines at most."""
        assert 1 <= len(re.findall(r"^\+.", block.text, re.MULTILINE)) <= 10


@pytest.mark.parametrize("heading", PRINTED)
def test_python_of_the_library(heading, capsys):
    """Each piece of Python in the library's README prints what is expected of it."""
    pieces = [block for block in PYTHON if (block.document, block.heading) == (LIBRARY, heading)]
    for block, lines in zip(pieces, PRINTED[heading], strict=True):
        run(block.text, block)
        assert capsys.readouterr().out.splitlines() == [str(line) for line in lines]


def test_all_python_is_run():
    """No document has a piece of Python that no test runs."""
    known = {*((LIBRARY, heading) for heading in PRINTED), *RUN_BY_ITSELF}
    assert {(block.document, block.heading) for block in PYTHON} == known


def test_a_method_of_another_name():
    """The line of README that gives a client's `ask` the name `chat` makes it a client with retries and truth."""
    [block] = [block for block in PYTHON if block.document == README]

    class MyClient:
        def ask(self, prompt):
            raise AssertionError

    assert type(DeepSeek(Flask("before"), client=MyClient()).client) is AsyncFacade
    run(block.text, block, MyClient=MyClient)
    assert type(DeepSeek(Flask("after"), client=MyClient()).client) is AsyncDeepSeekClient


def test_an_abort_of_the_clients_own():
    """The client with an `abort` cancels the future of its call when that call's deadline has passed."""
    [block] = [block for block in PYTHON if (block.document, block.heading) == HOW_IT_ENDS]
    future = Future()
    stub = types.SimpleNamespace(Ask=types.SimpleNamespace(future=lambda request: future))
    facade = run(block.text, block)["wrapped"](stub)
    with pytest.raises(DeadlineExceeded), call_options(deadline_s=0.3):
        asyncio.run(facade.ask_async("hi"))
    with pytest.raises(CancelledError):
        future.result(GIVE_UP_S)


SENTRY = """
import asyncio, sys
import sentry_sdk
from sentry_sdk.transport import Transport

class Kept(Transport):
    envelopes = []
    def capture_envelope(self, envelope):
        event = envelope.get_event()
        if event is not None:
            self.envelopes.append(event.get("message") or event["logentry"]["message"])

# Integrations would import every SDK that is installed.
sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Kept, auto_enabling_integrations=False)
{block}
from deepseek_client import AsyncDeepSeekClient, Settings
from deepseek_client.sandbox import SandboxConfig, running

with running(SandboxConfig(port=0, latency_ms=0)) as sandbox:
    settings = Settings.from_env({{"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": sandbox.url}})
    client = AsyncDeepSeekClient(settings=settings)
    for failures in (2, 3):
        sandbox.script([{{"fault": "status", "status": 503, "headers": {{"Retry-After": "0"}}}}] * failures)
        Kept.envelopes.clear()
        answer = asyncio.run(client.chat_async("x"))
        print(bool(answer["text"]), Kept.envelopes)
"""


@pytest.mark.parametrize("with_recipe", [True, False], ids=["with_recipe", "without"])
def test_sentry(with_recipe):
    """With the recipe Sentry gets no event of a call that a retry saves, and one of a call that fails."""
    [block] = [block for block in PYTHON if (block.document, block.heading) == (LIBRARY, "Logging")]
    done = subprocess.run(
        [sys.executable, "-c", SENTRY.format(block=block.text if with_recipe else "")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    succeeded, failed = done.stdout.splitlines()
    if with_recipe:
        assert (succeeded, failed) == ("True []", "False ['chat failed: upstream_unavailable']")
    else:
        assert succeeded.startswith("True ['")


class Agent:
    """What New Relic's agent does with traces: one for each asyncio task, or else for each thread."""

    def __init__(self):
        self.traces = {}

    def here(self):
        try:
            return asyncio.current_task() or threading.get_ident()
        except RuntimeError:
            return threading.get_ident()

    def current_trace(self):
        return self.traces.get(self.here())

    @contextmanager
    def context_of(self, trace):
        self.traces[self.here()] = trace
        yield
        del self.traces[self.here()]


@pytest.mark.parametrize("path", ["/plain", "/async"])
def test_new_relic(monkeypatch, path):
    """With the recipe the request's trace is the current one in an async view and in the call's thread."""
    agent = Agent()
    root = types.SimpleNamespace()
    root.root = root
    for name, contents in {
        "newrelic": {},
        "newrelic.agent": {"current_trace": agent.current_trace},
        "newrelic.core": {},
        "newrelic.core.context": {"ContextOf": agent.context_of},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(
            sys.modules[name.rpartition(".")[0] or name], name.rpartition(".")[2], module, raising=False
        )

    class MyClient:
        def chat(self, prompt):
            return {"text": str(agent.current_trace() is root)}

    app = Flask("theirs")
    [block] = [block for block in PYTHON if (block.document, block.heading) == (LIBRARY, "New Relic")]
    names = run(block.text, block, app=app, MyClient=MyClient)
    llm = DeepSeek(app, client=names["TracedClient"]())

    @app.get("/plain")
    def plain():
        return llm.wait(llm.client.chat_async("x"))

    @app.get("/async")
    @names["traced"]
    async def asynchronous():
        assert agent.current_trace() is root
        return await llm.client.chat_async("x")

    with agent.context_of(root):
        assert app.test_client().get(path).get_json() == {"text": "True"}
