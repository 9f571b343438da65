"""The game's Flask application."""

from __future__ import annotations

from deepseek_client.flask.loop import SharedLoop

from .app import create_app, shutdown

__all__ = ["SharedLoop", "create_app", "shutdown"]
