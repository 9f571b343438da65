"""POST /api/llm/tasks, GET /api/llm/status/<id>, DELETE /api/llm/tasks/<id>."""

import threading
from dataclasses import replace

import pytest
from support.patience import GIVE_UP_S

from deepseek_client.tasks.ledger import Ledger
from webapp.app import create_app
from webapp.routes import tasks


@pytest.fixture
def task_settings(settings, queue):
    """Settings with a queue."""
    return replace(settings, celery_broker_url=queue.url, task_queue_limit=3, task_result_ttl_s=60)


@pytest.fixture
def browser(task_settings):
    """Asks an application that has a queue."""
    yield create_app(task_settings).test_client()
    tasks._jobs_of(task_settings).close()


@pytest.fixture
def finish(queue):
    """Ends a task as a worker would."""
    ledger = Ledger(queue.url, limit=3, ttl_s=60)

    def end(task_id, state="completed", **outcome):
        assert ledger.finish(task_id, ledger.start(task_id, "a", 60, "channel").fence, state, outcome)

    yield end
    ledger.close()


def submit(browser, **headers):
    """The id of a task."""
    answer = browser.post("/api/llm/tasks", json={"prompt": "你好"}, headers=headers)
    assert answer.status_code == 202, answer.get_json()
    return answer.get_json()["task_id"]


def test_submission_is_accepted(browser):
    """202, where to look, and what the contract says."""
    answer = browser.post("/api/llm/tasks", json={"prompt": "你好"})
    body = answer.get_json()
    assert answer.status_code == 202
    assert body == {"task_id": body["task_id"], "status": "pending"}
    assert answer.headers["Location"] == f"/api/llm/status/{body['task_id']}"
    assert answer.headers["Retry-After"] == "1"


def test_utterance_is_submitted_as_parse(browser, queue):
    """With the context that /parse takes."""
    context = {"scene": "s", "player": {"realm": "r"}, "laws": [{"code": "c", "enabled": True}]}
    answer = browser.post("/api/llm/tasks", json={"utterance": "go", "context": context})
    ledger = Ledger(queue.url, limit=3, ttl_s=60)
    begun = ledger.start(answer.get_json()["task_id"], "a", 60, "channel")
    ledger.close()
    assert begun.method == "parse"
    assert begun.args[0] == "go"
    assert begun.args[1]["player"] == {"realm": "r"}


LONG = {"scene": "s" * 15_000, "target_realm": "t" * 15_000}  # each is allowed by itself


@pytest.mark.parametrize(
    "body",
    [
        {}, {"prompt": ""}, {"prompt": 7},
        {"utterance": ""}, {"utterance": "x", "context": 7}, {"utterance": "x", "context": LONG},
    ],
    ids=["no prompt", "blank", "number", "blank utterance", "wrong context", "long context"],
)  # fmt: skip
def test_wrong_body_is_400(browser, queue, body):
    """As on /chat and /parse; nothing is queued."""
    answer = browser.post("/api/llm/tasks", json=body)
    assert (answer.status_code, answer.get_json()["code"]) == (400, "invalid_request")
    route = "parse" if "utterance" in body else "chat"
    assert browser.post(f"/api/llm/{route}", json=body).get_json() == answer.get_json()
    assert queue.client().keys("*task*") == []


def test_status_tells_each_state(browser, finish):
    """Pending with Retry-After; completed with the result; failed with sentence and code; always 200."""
    done, failed, waits = (submit(browser) for _ in range(3))
    finish(done, result={"text": "再见"})
    finish(failed, "failed", error="Busy.", code="rate_limited")
    answers = {task_id: browser.get(f"/api/llm/status/{task_id}") for task_id in (done, failed, waits)}
    assert {answer.status_code for answer in answers.values()} == {200}
    assert answers[done].get_json() == {"task_id": done, "status": "completed", "result": {"text": "再见"}}
    assert answers[failed].get_json() == {
        "task_id": failed,
        "status": "failed",
        "error": "Busy.",
        "code": "rate_limited",
    }
    assert answers[waits].get_json() == {"task_id": waits, "status": "pending"}
    assert [answers[each].headers.get("Retry-After") for each in (done, failed, waits)] == [None, None, "1"]


def test_started_task_says_so(browser, queue):
    """Once a worker has it."""
    task_id = submit(browser)
    ledger = Ledger(queue.url, limit=3, ttl_s=60)
    ledger.start(task_id, "a", 60, "channel")
    ledger.close()
    answer = browser.get(f"/api/llm/status/{task_id}")
    assert answer.get_json()["status"] == "started"
    assert answer.headers["Retry-After"] == "1"


def test_polls_become_rarer(browser, queue):
    """The older a task, the later its next poll; ten seconds at most."""
    task_id = submit(browser)
    asked = []
    for age_s in (0, 8, 3600):
        record = f"{{deepseek}}:task:{task_id}"
        seconds, microseconds = queue.client().time()
        queue.client().hset(record, "submitted", (seconds - age_s) * 1_000_000 + microseconds)
        asked.append(browser.get(f"/api/llm/status/{task_id}").headers["Retry-After"])
    assert asked == ["1", "3", "10"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_missing_task_is_404_and_expired_one_410(browser, finish, queue, method):
    """In the shape of every error."""
    task_id = submit(browser)
    finish(task_id, result=1)
    queue.client().delete(f"{{deepseek}}:task:{task_id}")
    path = "/api/llm/status/" if method == "GET" else "/api/llm/tasks/"
    never, expired = (browser.open(path + each, method=method) for each in ("a" * 32, task_id))
    assert (never.status_code, never.get_json()["code"]) == (404, "not_found")
    assert (expired.status_code, expired.get_json()["code"]) == (410, "gone")
    assert {*never.get_json()} == {*expired.get_json()} == {"error", "code", "text"}


def test_cancel_says_what_became(browser, finish):
    """A waiting task is cancelled; one that has ended is left as it is."""
    waits, done = submit(browser), submit(browser)
    finish(done, result=1)
    assert browser.delete(f"/api/llm/tasks/{waits}").get_json() == {"task_id": waits, "status": "cancelled"}
    assert browser.delete(f"/api/llm/tasks/{waits}").get_json()["status"] == "cancelled"
    assert browser.delete(f"/api/llm/tasks/{done}").get_json()["status"] == "completed"


def test_key_makes_one_task(browser):
    """The same body: the same task; another: 409; a blank one: 400."""
    first = submit(browser, **{"Idempotency-Key": "k"})
    assert submit(browser, **{"Idempotency-Key": "k"}) == first
    other = browser.post("/api/llm/tasks", json={"prompt": "x"}, headers={"Idempotency-Key": "k"})
    assert (other.status_code, other.get_json()["code"]) == (409, "invalid_request")
    blank = browser.post("/api/llm/tasks", json={"prompt": "x"}, headers={"Idempotency-Key": " "})
    assert blank.status_code == 400


def test_full_queue_is_503(browser):
    """TASK_QUEUE_LIMIT tasks wait; the answer says when to come again."""
    for _ in range(3):
        submit(browser)
    answer = browser.post("/api/llm/tasks", json={"prompt": "x"})
    assert (answer.status_code, answer.get_json()["code"]) == (503, "overloaded")
    assert int(answer.headers["Retry-After"]) >= 1


def test_without_a_queue_the_routes_say_so(settings):
    """503 with its code, and everything else works."""
    browser = create_app(settings).test_client()
    for answer in (
        browser.post("/api/llm/tasks", json={"prompt": "x"}),
        browser.get("/api/llm/status/abc"),
        browser.delete("/api/llm/tasks/abc"),
    ):
        assert (answer.status_code, answer.get_json()["code"]) == (503, "queue_unavailable")
        assert answer.headers["Retry-After"]
    assert browser.post("/api/llm/chat", json={"prompt": "x"}).status_code == 200


def test_server_that_is_away_is_503(settings, own_queue):
    """The rest of the application does not notice."""
    browser = create_app(replace(settings, celery_broker_url=own_queue.url)).test_client()
    own_queue.kill()
    for _ in range(2):
        answer = browser.post("/api/llm/tasks", json={"prompt": "x"})
        assert (answer.status_code, answer.get_json()["code"]) == (503, "queue_unavailable")
        assert answer.headers["Retry-After"]
    assert browser.post("/api/llm/chat", json={"prompt": "x"}).status_code == 200


def test_token_guards_tasks(task_settings):
    """As all of /api/llm."""
    browser = create_app(replace(task_settings, web_api_token="a-token")).test_client()
    assert browser.post("/api/llm/tasks", json={"prompt": "x"}).status_code == 401
    assert browser.delete("/api/llm/tasks/x").status_code == 401


@pytest.mark.parametrize("wait", ["-1", "x", "inf", "nan", ""])
def test_wrong_wait_is_400(browser, wait):
    """Seconds, 0 or more."""
    assert browser.get(f"/api/llm/status/{submit(browser)}?wait={wait}").status_code == 400


def test_waiter_on_a_thread_is_woken(browser, finish):
    """It is answered by the end of the task, long before its time is over."""
    task_id = submit(browser)
    got = []

    def wait():
        path = f"/api/llm/status/{task_id}?wait={GIVE_UP_S}"
        got.append(browser.get(path, multithread=True).get_json()["status"])

    waiter = threading.Thread(target=wait)
    waiter.start()
    finish(task_id, result=1)
    waiter.join(GIVE_UP_S)
    assert got == ["completed"]


def test_sync_worker_does_not_wait(browser):
    """It would serve nobody else meanwhile: the answer comes at once, as pending."""
    path = f"/api/llm/status/{submit(browser)}?wait=3600"
    answer = browser.get(path, multithread=False)
    assert answer.get_json()["status"] == "pending"


def test_one_thread_is_left_for_others(browser, monkeypatch):
    """Of three threads two wait, and the third waiter is answered at once."""
    monkeypatch.setattr(tasks, "_threads", lambda: 3)
    waiters = tasks._Waiters()
    with browser.application.test_request_context(multithread=True):
        assert [waiters.take() for _ in range(3)] == [True, True, False]
        waiters.give_back()
        assert waiters.take()
