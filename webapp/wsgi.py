"""What a WSGI server runs, `webapp.wsgi:app`: configured by the environment and the current directory's `.env`."""

from __future__ import annotations

import logging
import os

import stamina
from dotenv import load_dotenv

from deepseek_client import Settings
from webapp import create_app

__all__ = ["app"]

load_dotenv(".env")  # the process environment wins
logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
if os.getenv("DEEPSEEK_VERBOSE") == "1":
    logging.getLogger("deepseek_client").setLevel(logging.DEBUG)
# Its own hooks would log each retry without a reason, and count it beside our metrics.
stamina.instrumentation.set_on_retry_hooks(())
app = create_app(Settings.from_env(os.environ))
