"""The console: a process of its own that shows what the workers do, also when all of them are busy.

It asks no worker. It reads the files that they count in, what they have testified, and the length of gunicorn's own
queue; only what a person tries is sent to the application. It lies here as a part of our application, and in an
installed library as `deepseek_client.console`.
"""

from __future__ import annotations

from .application import create_console

__all__ = ["create_console"]
