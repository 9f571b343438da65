"""The game's Flask application."""

from __future__ import annotations

from .app import create_app

__all__ = ["create_app"]
