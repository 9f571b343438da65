"""What a WSGI server runs, `webapp.wsgi:app`: configured by the environment and the current directory's `.env`."""

from __future__ import annotations

import logging
import os

import stamina
from dotenv import load_dotenv

from deepseek_client import Settings
from deepseek_client.telemetry import logs
from webapp import create_app

__all__ = ["app"]

load_dotenv(".env")  # the process environment wins
settings = Settings.from_env(os.environ)
secrets = (settings.api_key, settings.web_api_token)
logging.basicConfig(handlers=[logs.handler(as_json=settings.log_format == "json", secrets=secrets)])
verbose = os.getenv("DEEPSEEK_VERBOSE") == "1"
logging.getLogger("deepseek_client").setLevel(logging.DEBUG if verbose else logging.INFO)
# Its own hooks would log each retry without a reason, and count it beside our metrics.
stamina.instrumentation.set_on_retry_hooks(())
app = create_app(settings)
