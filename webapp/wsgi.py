"""What a WSGI server runs, `webapp.wsgi:app`: configured by the environment and the current directory's `.env`."""

from __future__ import annotations

import os

from dotenv import load_dotenv

from deepseek_client import Settings
from webapp import create_app

__all__ = ["app"]

load_dotenv(".env")  # the process environment wins
app = create_app(Settings.from_env(os.environ))
