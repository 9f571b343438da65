"""What a WSGI server runs, `webapp.wsgi:app`: configured by the environment and the current directory's `.env`."""

from __future__ import annotations

import logging
import os

from deepseek_client import Settings
from deepseek_client.flask import log_handler
from deepseek_client.settings_file import read_env_file
from webapp.app import create_app

__all__ = ["app"]

# The process environment wins; proxies and certificates may stand in .env, too.
os.environ.update({**read_env_file(), **os.environ})
settings = Settings.from_env(os.environ)
secrets = (settings.api_key, settings.web_api_token)
logging.basicConfig(handlers=[log_handler(as_json=settings.log_format == "json", secrets=secrets)])
app = create_app(settings)
