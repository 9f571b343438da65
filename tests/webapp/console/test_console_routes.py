"""The console's pages and data, from samples that are given, and what it sends to an application."""

from __future__ import annotations

import json
import os
import re
import subprocess
from http.client import HTTPConnection

import pytest
from support.serving import reply
from support.sizing_cases import CASES

from webapp.console import create_console, findings
from webapp.console.reports import sizing_report
from webapp.console.sample import Sample, Worker
from webapp.console.sizing import size
from webapp.console.texts import LANGUAGES, TEXTS, speaker
from webapp.console.watching import Watch
from webapp.console.windows import POINT

WORKERS = (
    Worker(
        pid=11, mode="async", engine="threads", since="2026-11-26T10:00:00+00:00", threads=5, busy=2, queued=1
    ),
    Worker(
        pid=12,
        mode="sync",
        engine="threads",
        since="2026-11-26T10:00:01+00:00",
        threads=5,
        busy=1,
        breakers=1,
    ),
)


def sample(at, ok=0.0):
    ended = {"ok": ok, "failed": 1.0, "refused": 2.0}
    return Sample(at=at, server=("one",), workers=WORKERS, backlog=7, ended=ended)


@pytest.fixture
def watch():
    """Three seconds in which ten calls end each."""
    looks = iter(range(100))
    watch = Watch(lambda at: sample(at, 10.0 * next(looks)), clock=iter(range(100, 200)).__next__)
    for _ in range(3):
        watch.sample()
    watch.start = lambda: None
    return watch


@pytest.fixture
def console(watch, monkeypatch, tmp_path):
    """Builds the console over these samples, for an application at this address."""
    monkeypatch.chdir(tmp_path)
    return lambda address="http://127.0.0.1:9": create_console(address, threads=1, watch=watch).test_client()


def test_data_is_what_is_new(console, watch):
    """A page gets the points that it has not got yet, and the figures of now."""
    client = console()
    data = client.get("/data?since=0").get_json()
    assert (data["number"], len(data["points"])) == (3, 3)
    assert dict(zip(POINT, data["points"][-1], strict=True))["ok"] == 10
    watch.sample()
    assert len(client.get("/data?since=3").get_json()["points"]) == 1
    assert client.get("/data?since=4").get_json()["points"] == []


@pytest.mark.parametrize(
    "query", ["since=x", "since=-1", "since=99999999999999999999", "window=0", "window=x", "since=٣"]
)
def test_odd_queries(console, query):
    """What is no number is the default, and no number breaks anything."""
    assert console().get(f"/data?{query}").status_code == 200


def test_now_is_the_sum_and_each_process(console):
    """Busy and waiting calls, open breakers and gunicorn's own queue, together and of each process."""
    now = console().get("/data").get_json()["now"]
    assert now["figures"] == {
        "busy": "3 of 10",
        "queued": "1",
        "backlog": "7",
        "in_flight": "4",
        "refused": "0",
        "breaker": "open in 1",
    }
    assert now["processes"] == [
        ["11", "async", "threads", "10:00:00", "5", "2", "1", "0"],
        ["12", "sync", "threads", "10:00:01", "5", "1", "0", "1"],
        ["Together", "async, sync", "threads", "", "10", "3", "1", "1"],
    ]


def test_page_has_its_figures_without_script(console):
    """The server renders what the page says, so that it is read also where no script runs."""
    text = console().get("/").text
    assert '<dd data-figure="busy">3 of 10</dd>' in text
    assert "Sync workers are the limit" in text


@pytest.mark.parametrize(
    ("accepted", "language", "title"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-Hans", "控制台"),
        ("fr,en;q=0.5", "en", "Console"),
        ("", "en", "Console"),
    ],
)
def test_language_of_the_browser(console, accepted, language, title):
    """The page is in the language that the browser wants, English where it wants neither."""
    text = console().get("/", headers={"Accept-Language": accepted}).text
    assert f'<html lang="{language}">' in text
    assert f"<h1>{title}</h1>" in text


def test_chosen_language_stays(console):
    """A language that was chosen comes before the browser's, on the page and in the data."""
    client = console()
    assert client.get("/?lang=zh").status_code == 303
    assert "<h1>控制台</h1>" in client.get("/", headers={"Accept-Language": "en"}).text
    assert client.get("/data").get_json()["now"]["figures"]["busy"] == "3 / 10"


def test_both_languages_have_the_same_values():
    """No text lacks a translation, or has another value in it."""
    for key, (english, chinese) in TEXTS.items():
        assert english, key
        assert chinese, key
        assert {*re.findall(r"{(\w+)}", english)} == {*re.findall(r"{(\w+)}", chinese)}, key


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("verdict", "load", "_"), CASES, ids=[case[0] for case in CASES])
def test_each_verdict_is_a_sentence(verdict, load, _, language):
    """Each verdict has its sentence in each language, with every number that belongs in it."""
    for is_sync in (True, False):
        report = sizing_report(speaker(language), size(load), 60, load.processes, is_sync)
        assert report["kind"] == verdict
        assert not re.search(r"[{}]|None|nan|  ", report["verdict"])


def test_page_is_small(console):
    """The page with everything that it loads is under 150 kB."""
    client = console()
    text = client.get("/").text
    loaded = re.findall(r'(?:href|src)="(/static/[^"]+)"', text)
    assert {"/static/console.js", "/static/console.css"} <= {*loaded}
    page_bytes = len(text.encode())
    for path in [*loaded, "/static/charts.js", "/static/try.js"]:
        with client.get(path) as answer:
            page_bytes += len(answer.data)
    assert page_bytes < 150_000


def test_metrics_of_no_server(console):
    """Prometheus finds what can be known at 0, also before the first call."""
    assert 'deepseek_requests_total{method="chat",mode="async"} 0.0' in console().get("/metrics").text


# What is tried.


def tried(client, **form):
    return client.post("/try", json={"kind": "chat", "mode": "async", "text": "你好", **form})


@pytest.mark.parametrize(
    ("form", "path", "body"),
    [
        ({}, "/api/llm/chat", {"prompt": "你好"}),
        ({"mode": "sync"}, "/api/llm/chat/sync", {"prompt": "你好"}),
        (
            {"kind": "parse", "scene": "山门", "realm": "筑基", "target_realm": 3},
            "/api/llm/parse",
            {
                "utterance": "你好",
                "context": {"scene": "山门", "target_realm": "", "player": {"realm": "筑基"}},
            },
        ),
        (
            {"kind": "batch", "text": "一\n\n二\n"},
            "/api/llm/batch",
            {"requests": [{"prompt": "一"}, {"prompt": "二"}]},
        ),
    ],
    ids=["chat", "chat_sync", "parse", "batch"],
)
def test_what_the_application_gets(console, serve, monkeypatch, form, path, body):
    """A form becomes a request of the HTTP API, with the token, and marked as the console's."""
    bodies = []

    def answer(handler):
        reply(handler, body=b'{"text": "ok"}')

    server = serve(answer)
    monkeypatch.setattr("http.client.HTTPConnection.request", recording(bodies))
    monkeypatch.setenv("WEB_API_TOKEN", "a-token")
    client = console(server.url)
    client.post("/login", data={"token": "a-token"})
    assert tried(client, **form).status_code == 200
    [(asked, headers)] = server.requests
    assert asked == path
    assert json.loads(bodies[0]) == body
    assert headers["Authorization"] == "Bearer a-token"
    assert headers["X-LLM-Source"] == "console"


def recording(bodies):
    """Stands in for HTTPConnection.request, and keeps the bodies."""
    request = HTTPConnection.request

    def send(self, method, path, body, headers):
        bodies.append(body)
        request(self, method, path, body, headers)

    return send


def test_answer_with_its_facts(console, serve):
    """The text, the attempts, the request's id, and the mode and engine that it really had, whatever was asked for."""

    def answer(handler):
        said = b'{"text": "<b>hi</b>", "mode": "async"}'
        reply(handler, body=said, X_LLM_Calls="mode=sync pid=11 calls=1 attempts=2 waited_ms=0 ran_ms=812")

    report = tried(console(serve(answer).url)).get_json()
    facts = dict(report["facts"])
    assert (report["title"], report["text"], report["error"]) == ("sync", "<b>hi</b>", "")
    assert (facts["Engine"], facts["Attempts"]) == ("inline", "2")
    assert facts["Request id"].startswith("console-")
    assert "Took" in facts


@pytest.mark.parametrize(
    ("status", "body", "error", "code"),
    [
        (
            502,
            b'{"error": "The API failed.", "code": "upstream_unavailable"}',
            "The API failed.",
            "upstream_unavailable",
        ),
        (404, b"<h1>Not Found</h1>", "answered 404, and the answer is no JSON object", ""),
        (200, b"[1]", "answered 200, and the answer is no JSON object", ""),
        (500, b'{"error": null}', "None", ""),
    ],
)
def test_errors_as_sentence_and_code(console, serve, status, body, error, code):
    """What failed is told by the application's own sentence and code, or by what came in their place."""
    server = serve(lambda handler: reply(handler, status, body))
    report = tried(console(server.url)).get_json()
    assert error in report["error"]
    assert (report["code"], report["text"]) == (code, "")


def test_application_that_is_not_there(console):
    """Where nobody listens the person is told the address."""
    report = tried(console("http://127.0.0.1:9")).get_json()
    assert "http://127.0.0.1:9 does not answer" in report["error"]


@pytest.mark.parametrize(
    "form",
    [{"kind": "x"}, {"kind": "batch", "mode": "sync"}, {"text": 5}, {"text": "x" * 100_001}, {"mode": None}],
)
def test_forms_that_the_page_does_not_send(console, form):
    """What is no form of the page is refused, and nothing is sent."""
    assert tried(console(), **form).status_code == 400


def test_forms_must_be_json(console):
    """A form of another page, which cannot send JSON, makes no call."""
    assert console().post("/try", data={"kind": "chat", "mode": "async", "text": "x"}).status_code == 415


# The doctor.


def test_findings_are_asked_once_a_minute(console, monkeypatch):
    """The doctor runs in a process of its own, and its answer is good for a minute."""
    found = [{"level": "hint", "code": "x", "what": "a", "why": "b", "remedy": "c"}]
    runs = []

    def run(command, **_):
        runs.append(command)
        return subprocess.CompletedProcess(command, 0, json.dumps(found).encode())

    monkeypatch.setattr(findings.subprocess, "run", run)
    client = console()
    for _ in range(2):
        assert client.get("/findings").get_json()["findings"] == [
            {name: found[0][name] for name in ("level", "what", "why", "remedy")}
        ]
    assert len(runs) == 1
    assert runs[0][-2:] == ["doctor", "--json"]


def test_doctor_that_fails(console, monkeypatch):
    """Without the doctor the page says that it cannot say."""
    monkeypatch.setattr(findings.sys, "executable", os.devnull)
    assert console().get("/findings").get_json()["findings"] is None
