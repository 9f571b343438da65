"""What an operator and a program ask of the server itself: /health, /ready, /metrics, its status and its contract."""

from __future__ import annotations

import os
from typing import Any

from flask import Blueprint, current_app

from deepseek_client import __version__
from deepseek_client.flask import metrics_view

from .. import openapi
from ..extensions import deepseek

__all__ = ["probes"]

probes = Blueprint("probes", __name__)


@probes.get("/health")
def health() -> dict[str, str]:
    return {"status": "healthy"}


@probes.get("/ready")
def ready() -> tuple[dict[str, str], int]:
    settings, pool = deepseek.settings, deepseek.client.pool.stats()
    if not settings.api_key:
        return {"status": "unready", "reason": "no API key is configured"}, 503
    refusal = deepseek.client.refusal()
    if refusal is not None:
        return {"status": "unready", "reason": f"the breaker is open: {refusal}"}, 503
    if settings.use_async and pool["busy"] + pool["queued"] >= pool["workers"] + pool["queue_limit"]:
        return {"status": "unready", "reason": "the pool is full"}, 503
    return {"status": "ready"}, 200


probes.add_url_rule("/metrics", view_func=metrics_view)


@probes.get("/api/openapi.json")
def contract() -> dict[str, Any]:
    return openapi.describe(deepseek.settings)


@probes.get("/api/llm/status")
def status() -> dict[str, Any]:
    settings = deepseek.settings
    return {
        "status": "ok",
        "api_key_configured": bool(settings.api_key),
        "endpoints": sorted({rule.rule for rule in current_app.url_map.iter_rules()}),
        "version": __version__,
        "async_enabled": settings.use_async,
        "engine": deepseek.settings.engine,
        "pid": os.getpid(),
        "pool": deepseek.client.pool.stats(),
        "upstream": "sandbox" if settings.is_upstream_local else "deepseek",
    }
