"""The console as a Flask application: pages and data from what the watch has kept, and never a worker's time."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, current_app, redirect, render_template, request, url_for
from werkzeug.exceptions import BadRequest, NotFound, ServiceUnavailable
from werkzeug.wrappers import Response as BaseResponse

from deepseek_client import ConfigError, QueueUnavailable, Settings
from deepseek_client.telemetry.metrics import exposition_of
from deepseek_client.telemetry.testimony import run_directory

from .access import Access
from .configuration import Configuration, environment
from .findings import Findings
from .queue import Queue
from .reports import cancelled_report, now_report, sizing_report, tasks_report, tried_report
from .sample import Sample
from .sizing import size
from .texts import LANGUAGES, speaker
from .trying import ask, question_in
from .watching import KEPT_S, Kept, Server, Watch
from .windows import POINT, load_between, start_of_load

__all__ = ["Console", "create_console"]

_LANGUAGE_COOKIE = "deepseek_console_language"
_YEAR_S = 365 * 24 * 3600
_MINUTE_S = 60
_FORM_BYTES = 512 * 1024
_LONGER_S = 15.0  # than the deadline: what waits in gunicorn's own queue waits before it


class Console:
    """What the routes of one console share.

    Args:
        configuration: where the application is.
        watch: None for one that looks at the server of the working directory.

    Threads: any.
    """

    def __init__(self, configuration: Configuration, watch: Watch | None = None) -> None:
        self.configuration = configuration
        self.server = Server(
            run_directory(environment()), _port_of(configuration.address()), configuration.master
        )
        self.watch = watch or Watch(self.server.look)
        self.findings = Findings()
        self.queue = Queue(self.settings)
        self.access = Access(configuration.hosts, lambda: self.settings().web_api_token)

    def settings(self) -> Settings:
        """Returns the deployment's settings.

        Raises:
            ServiceUnavailable: they cannot be read, so that nobody knows the token.
        """
        try:
            return self.configuration.settings()
        except ConfigError as error:
            raise ServiceUnavailable(str(error)) from None

    def kept(self, number: int = 0) -> list[Kept]:
        """Returns the samples after this number; takes the first one itself, so that there always is one."""
        self.watch.start()
        if not self.watch.since(0):
            self.watch.sample()
        return self.watch.since(number)

    def report(self, language: str, window_s: float) -> dict[str, Any]:
        """Returns what the page says beside its charts."""
        say = speaker(language)
        samples = [kept.sample for kept in self.kept()] or [Sample(0.0)]
        measured = samples[start_of_load(samples, window_s) :]
        threads = self.configuration.threads
        load = load_between(measured, threads * len(samples[-1].workers))
        sizing = sizing_report(say, size(load), load.seconds, load.processes, is_sync=threads == 1)
        return {"now": now_report(say, samples), "sizing": sizing}


def create_console(
    application: str = "",
    *,
    threads: int = 0,
    master: int = 0,
    hosts: tuple[str, ...] = (),
    watch: Watch | None = None,
) -> Flask:
    """Builds the console for the server of the working directory: a WSGI application, best in one process.

    Args:
        application: its address; "" for that of HOST and PORT, from the environment and `.env`.
        threads: requests that each of its worker processes takes at a time; 0 if that is not known.
        master: shows the workers of this process only, as long as it lives.
        hosts: names by which the console may be called, beside those of loopback.
        watch: for tests.

    Raises:
        ConfigError: a setting is wrong, or `.env` cannot be read.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = _FORM_BYTES
    configuration = Configuration(application, threads, master, hosts)
    configuration.settings()
    console = Console(configuration, watch)
    app.extensions["console"] = console
    console.access.init_app(app)
    app.register_blueprint(_routes)
    return app


_routes = Blueprint("console", __name__)


@_routes.get("/")
def page() -> BaseResponse | str:
    chosen = request.args.get("lang")
    if chosen in LANGUAGES:
        answer = redirect(url_for("console.page"), 303)
        answer.set_cookie(_LANGUAGE_COOKIE, chosen, max_age=_YEAR_S, httponly=True, samesite="Strict")
        return answer
    console = _console()
    report = console.report(_language(), KEPT_S)
    return _render("page.html", point=POINT, has_tasks=console.queue.is_configured(), **report)


@_routes.get("/data")
def data() -> Response:
    console = _console()
    kept = console.kept(_whole(request.args.get("since", "0"), 0))
    window_s = max(_MINUTE_S // 12, min(KEPT_S, _whole(request.args.get("window", ""), KEPT_S)))
    report = json.dumps(console.report(_language(), window_s), ensure_ascii=False)
    number = kept[-1].number if kept else _whole(request.args.get("since", "0"), 0)
    points = ",".join(each.point for each in kept)
    # The points are JSON already.
    body = f'{{"number":{number},"points":[{points}],{report[1:]}'
    return Response(body, content_type="application/json")


@_routes.get("/findings")
def findings() -> dict[str, Any]:
    return {"findings": _console().findings.get()}


@_routes.get("/metrics")
def prometheus() -> Response:
    body, content_type = exposition_of(*_console().server.directories())
    return Response(body, content_type=content_type)


@_routes.post("/try")
def try_it() -> dict[str, Any]:
    console = _console()
    try:
        # A form of another page cannot send JSON.
        question = question_in(_json())
    except ValueError as error:
        raise BadRequest(str(error)) from None
    settings, address = console.settings(), console.configuration.address()
    answer = ask(address, settings.web_api_token, question, settings.deadline_s + _LONGER_S)
    engines = {worker.pid: worker.engine for kept in console.kept()[-1:] for worker in kept.sample.workers}
    return tried_report(speaker(_language()), question.mode, answer, engines, address)


@_routes.get("/tasks")
def tasks() -> dict[str, Any]:
    queue, say = _console().queue, speaker(_language())
    if not queue.is_configured():
        raise NotFound("No queue is configured.")
    try:
        return tasks_report(say, queue.overview())
    except QueueUnavailable:
        return tasks_report(say, None)


@_routes.post("/tasks/cancel")
def cancel_task() -> dict[str, Any]:
    queue, say = _console().queue, speaker(_language())
    form = _json()
    task_id = form.get("task_id") if isinstance(form, dict) else None
    if not isinstance(task_id, str):
        raise BadRequest("need a task_id")
    if not queue.is_configured():
        raise NotFound("No queue is configured.")
    try:
        return cancelled_report(say, queue.cancel(task_id).status)
    except LookupError:
        return cancelled_report(say, "")
    except QueueUnavailable:
        return cancelled_report(say, None)


@_routes.route("/login", methods=["GET", "POST"])
def login() -> BaseResponse | str | tuple[str, int]:
    if request.method == "GET":
        return _render("login.html", is_wrong=False)
    access = _console().access
    if not access.is_token(request.form.get("token", "")):
        return _render("login.html", is_wrong=True), 401
    answer = redirect(url_for("console.page"), 303)
    access.remember(answer)
    return answer


def _json() -> Any:
    try:
        return request.get_json()
    except RecursionError:
        raise BadRequest("The JSON is nested too deeply.") from None


def _console() -> Console:
    console: Console = current_app.extensions["console"]
    return console


def _language() -> str:
    chosen = request.cookies.get(_LANGUAGE_COOKIE)
    if chosen in LANGUAGES:
        return chosen
    return request.accept_languages.best_match(list(LANGUAGES), "en") or "en"


def _render(template: str, **values: Any) -> str:
    language = _language()
    html_language = "zh-Hans" if language == "zh" else language
    return render_template(
        template,
        t=speaker(language),
        language=language,
        languages=LANGUAGES,
        html_language=html_language,
        **values,
    )


def _whole(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else default


def _port_of(address: str) -> int:
    try:
        return urlsplit(address).port or 0
    except ValueError:
        return 0
