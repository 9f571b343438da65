"""The application's one way to the LLM."""

from __future__ import annotations

from deepseek_client.flask import DeepSeek

__all__ = ["deepseek"]

deepseek = DeepSeek(errors="raise")
