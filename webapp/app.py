"""The Flask application: JSON in, JSON out. What a call is and how it fails lives in deepseek_client."""

from __future__ import annotations

from flask import Flask

from deepseek_client import Settings

from . import access, answers
from .bodies import BODY_LIMIT_BYTES, ReadableJson
from .extensions import deepseek
from .routes.llm import llm
from .routes.probes import probes
from .routes.tasks import tasks

__all__ = ["create_app"]


def create_app(settings: Settings | None = None) -> Flask:
    """Builds the application; starts no thread and opens no connection before the first call.

    Args:
        settings: None reads the environment and `.env`.

    Raises:
        ConfigError: a setting is wrong.
    """
    app = Flask("webapp", static_folder=None)
    # One more than is allowed: Werkzeug cuts a body without Content-Length here and says nothing.
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT_BYTES + 1
    app.json = ReadableJson(app)
    app.url_map.merge_slashes = False  # its redirect would repeat whatever Host header came
    deepseek.init_app(app, settings=settings)
    access.init_app(app)
    answers.init_app(app)
    app.register_blueprint(llm)
    app.register_blueprint(probes)
    app.register_blueprint(tasks)
    return app
