"""Requests that are made up from the application's own OpenAPI document: right ones, and wrong ones."""

import logging
import os

import pytest
from support.queue_server import QueueServer

from deepseek_client import Settings
from deepseek_client.tasks.ledger import Ledger
from webapp.app import create_app
from webapp.routes import tasks

schemathesis = pytest.importorskip("schemathesis", reason="it needs Python 3.11")
from hypothesis import HealthCheck, Phase, given, settings as fuzzing  # noqa: E402, I001
from hypothesis.configuration import set_hypothesis_home_dir  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import CHECKS, not_a_server_error  # noqa: E402

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))  # thousands by hand
TELLING = 6  # characters of a string that is in no line of the log by chance

FAILING = [
    {"fault": "status", "status": 402},
    {"fault": "status", "status": 429, "headers": {"Retry-After": "7"}},
    {"fault": "status", "status": 500},
    {"fault": "close_before_reply"},
    {"fault": "cut_body"},
    {"fault": "html"},
    {"fault": "null_content"},
]
CALLS = [("POST", f"/api/llm/{name}") for name in ("chat", "chat/sync", "parse", "parse/sync", "batch")]
CALLS += [("GET", "/api/llm/chat")]
PROBES = [("GET", path) for path in ("/health", "/ready", "/metrics", "/api/openapi.json", "/api/llm/status")]
SUBMIT = ("POST", "/api/llm/tasks")
OF_A_TASK = [("GET", "/api/llm/status/{task_id}"), ("DELETE", "/api/llm/tasks/{task_id}")]
named = [f"{method}-{path.removeprefix('/api/llm/')}" for method, path in CALLS]
over_calls = pytest.mark.parametrize(("method", "path"), CALLS, ids=named)
of_a_task = pytest.mark.parametrize(("method", "path"), OF_A_TASK, ids=["GET", "DELETE"])


@pytest.fixture(scope="module", autouse=True)
def no_notes_in_the_tree(tmp_path_factory):
    """What Hypothesis remembers from run to run it forgets."""
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


@pytest.fixture(scope="module")
def serve_contract(shared_sandbox):
    """Makes an application, and reads its document, which is valid OpenAPI."""

    def make(**more):
        upstream = {"DEEPSEEK_API_KEY": "sk-test", "DEEPSEEK_BASE_URL": shared_sandbox.url}
        settings = Settings.from_env({**upstream, "LLM_MAX_ATTEMPTS": "1", **more})
        schema = schemathesis.openapi.from_wsgi("/api/openapi.json", create_app(settings))
        schema.validate()
        return schema

    return make


@pytest.fixture(scope="module")
def contract(serve_contract):
    """Of an application whose calls go well."""
    return serve_contract()


@pytest.fixture(scope="module")
def failing_contract(serve_contract):
    """Of an application whose breaker may be open."""
    return serve_contract()


@pytest.fixture(scope="module")
def task_queue(tmp_path_factory):
    """A queue that no worker serves."""
    server = QueueServer(tmp_path_factory.mktemp("queue"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def task_contract(serve_contract, task_queue):
    """Of an application that has a queue."""
    yield serve_contract(CELERY_BROKER_URL=task_queue.url, TASK_QUEUE_LIMIT="100000")
    tasks._jobs_of.cache_clear()


@pytest.fixture
def ended_tasks(task_queue):
    """The ids of tasks, each of which has ended in another way."""
    ledger = Ledger(task_queue.url, limit=100_000, ttl_s=3600)
    outcomes = {
        "completed": {"result": {"text": "再见"}},
        "failed": {"error": "Busy.", "code": "rate_limited"},
        "cancelled": {},
    }
    ids = []
    for state, outcome in outcomes.items():
        _, task_id = ledger.submit("chat", ["你好"], "", key="")
        ledger.finish(task_id, ledger.start(task_id, "a", 60, "channel").fence, state, outcome)
        ids.append(task_id)
    yield ids
    ledger.close()


@pytest.fixture
def fuzz(sandbox, caplog):
    """Sends requests of one kind to a route; holds the answers against the document, and the log against the bodies."""
    caplog.set_level(logging.INFO)

    def run(contract, method, path, mode, *without, before=lambda: None, **in_path):
        @given(case=contract[path][method].as_strategy(generation_mode=mode))
        @fuzzing(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case):
            before()
            case.path_parameters.update(in_path)
            caplog.clear()
            answer = case.call()
            # Which failures are right is in the document.
            case.validate_response(answer, excluded_checks=[not_a_server_error, *without])
            assert b"Traceback" not in answer.content
            assert "Traceback" not in caplog.text
            for text in strings_in(case.body):
                assert text not in caplog.text
                assert repr(text)[1:-1] not in caplog.text
            statuses.add(answer.status_code)

        statuses = set()
        ask()
        return statuses

    return run


def strings_in(value):
    """The strings in a body, as far as finding one of them elsewhere says something."""
    if isinstance(value, (str, bytes)):
        text = value if isinstance(value, str) else value.decode("latin-1")
        # The fuzzer also takes strings from our own modules, which the log may well say; those are ASCII.
        return set() if len(text) < TELLING or text.isascii() else {text}
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return set().union(*map(strings_in, parts))


def check(name):
    """A check of schemathesis, by its name."""
    (found,) = CHECKS.get_by_names([name])
    return found


@over_calls
def test_right_bodies(fuzz, contract, method, path):
    """Whatever the document allows is answered, 200 where the API answers."""
    assert fuzz(contract, method, path, GenerationMode.POSITIVE) == {200}


@over_calls
def test_wrong_bodies(fuzz, contract, method, path):
    """Whatever the document does not allow is a 400 in its shape; in a batch an entry may fail alone."""
    without = [check("negative_data_rejection")] if path.endswith("batch") else []
    assert fuzz(contract, method, path, GenerationMode.NEGATIVE, *without) - {200} == {400}


@pytest.mark.parametrize("name", ["chat", "parse", "batch"])
def test_failing_api(fuzz, failing_contract, sandbox, name):
    """However the API fails, the answer is as documented, and the log says nothing of the body."""
    without = check("positive_data_acceptance")
    statuses = fuzz(failing_contract, "POST", f"/api/llm/{name}", GenerationMode.POSITIVE, without,
                    before=lambda: sandbox.script(FAILING))  # fmt: skip
    assert statuses & {200, 502, 503}


@pytest.mark.parametrize(("method", "path"), PROBES, ids=[path for _, path in PROBES])
def test_probes(fuzz, contract, method, path):
    """What is asked of the server itself answers as documented."""
    assert fuzz(contract, method, path, GenerationMode.POSITIVE) == {200}


def test_right_submissions(fuzz, task_contract):
    """Whatever the document allows is accepted; a key that comes again with another body is a 409."""
    statuses = fuzz(task_contract, *SUBMIT, GenerationMode.POSITIVE)
    assert 202 in statuses
    assert statuses <= {202, 409}


def test_wrong_submissions(fuzz, task_contract):
    """Whatever the document does not allow is a 400 in its shape, as on the routes that make the call."""
    assert fuzz(task_contract, *SUBMIT, GenerationMode.NEGATIVE) == {400}


@of_a_task
def test_ids_that_never_were(fuzz, task_contract, method, path):
    """Whatever stands in the place of an id, it is a 404."""
    assert fuzz(task_contract, method, path, GenerationMode.POSITIVE) == {404}


@of_a_task
def test_ended_tasks(fuzz, task_contract, ended_tasks, method, path):
    """A task is answered as documented, however it has ended."""
    for task_id in ended_tasks:
        assert fuzz(task_contract, method, path, GenerationMode.POSITIVE, task_id=task_id) == {200}


@pytest.mark.parametrize(("method", "path"), [SUBMIT, *OF_A_TASK], ids=["POST", "GET", "DELETE"])
def test_tasks_without_a_queue(fuzz, contract, method, path):
    """Without a queue the routes of tasks answer 503, as documented."""
    assert fuzz(contract, method, path, GenerationMode.POSITIVE) == {503}


def test_every_route_is_fuzzed(contract):
    """No route of the document is left out."""
    found = {(each.ok().method.upper(), each.ok().path) for each in contract.get_all_operations()}
    # The fuzzer does not take the document itself for a part of the contract.
    assert found == {*CALLS, *PROBES, SUBMIT, *OF_A_TASK} - {("GET", "/api/openapi.json")}
