"""The Flask application: JSON in, JSON out. What a call is and how it fails lives in deepseek_client."""

from __future__ import annotations

import os

from flask import Flask

from deepseek_client import AsyncDeepSeekClient, Settings
from deepseek_client.calls.caller import abort_blocking
from deepseek_client.calls.retries import Policy, end_waits
from deepseek_client.engines.threads import close_default_pools
from deepseek_client.flask import envelope
from deepseek_client.flask.loop import SharedLoop
from deepseek_client.telemetry import logs, metrics

from . import access, answers
from .bodies import BODY_LIMIT_BYTES, ReadableJson
from .routes.llm import llm
from .routes.probes import probes

__all__ = ["create_app", "shutdown"]


def create_app(settings: Settings | None = None) -> Flask:
    """Builds the application; starts no thread and opens no connection before the first call.

    Args:
        settings: None for `Settings.from_env(os.environ)`.

    Raises:
        ConfigError: a variable of the environment is wrong.
    """
    settings = settings or Settings.from_env(os.environ)
    app = Flask("webapp", static_folder=None)
    # One more than is allowed: Werkzeug cuts a body without Content-Length here and says nothing.
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT_BYTES + 1
    app.json = ReadableJson(app)
    app.url_map.merge_slashes = False  # its redirect would repeat whatever Host header came
    app.extensions["llm_settings"] = settings
    policy = app.extensions["llm_policy"] = Policy(settings)
    app.extensions["llm_client"] = AsyncDeepSeekClient(settings=settings, errors="raise", policy=policy)
    envelope.init_app(app)
    access.init_app(app)
    SharedLoop(app)
    answers.init_app(app)
    metrics.install()
    logs.install()
    app.register_blueprint(llm)
    app.register_blueprint(probes)
    return app


def shutdown() -> None:
    """Ends the calls of a process that is about to leave, wherever they are: their requests answer 503 `closing`.

    Threads: any; it takes locks, so not a signal handler. Waits for nothing.
    """
    close_default_pools()
    end_waits()
    abort_blocking()
