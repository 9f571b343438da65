"""What an operator asks: /health, /ready, /metrics and /api/llm/status."""

from __future__ import annotations

import ipaddress
import os
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, current_app

from deepseek_client import Settings, __version__
from deepseek_client.engines.threads import default_pool
from deepseek_client.telemetry import metrics

__all__ = ["is_loopback", "probes"]

probes = Blueprint("probes", __name__)


@probes.get("/health")
def health() -> dict[str, str]:
    return {"status": "healthy"}


@probes.get("/ready")
def ready() -> tuple[dict[str, str], int]:
    settings, pool = _settings(), _pool_stats()
    if not settings.api_key:
        return {"status": "unready", "reason": "no API key is configured"}, 503
    refusal = current_app.extensions["llm_policy"].breaker.refusal()
    if refusal is not None:
        return {"status": "unready", "reason": f"the breaker is open: {refusal}"}, 503
    if settings.use_async and pool["busy"] + pool["queued"] >= pool["workers"] + pool["queue_limit"]:
        return {"status": "unready", "reason": "the pool is full"}, 503
    return {"status": "ready"}, 200


@probes.get("/metrics")
def exposition() -> Response:
    body, content_type = metrics.exposition()
    return Response(body, content_type=content_type)


@probes.get("/api/llm/status")
def status() -> dict[str, Any]:
    settings = _settings()
    return {
        "status": "ok",
        "api_key_configured": bool(settings.api_key),
        "endpoints": sorted({rule.rule for rule in current_app.url_map.iter_rules()}),
        "version": __version__,
        "async_enabled": settings.use_async,
        "pid": os.getpid(),
        "pool": _pool_stats(),
        "upstream": "sandbox" if is_loopback(urlsplit(settings.base_url).hostname or "") else "deepseek",
    }


def _settings() -> Settings:
    settings: Settings = current_app.extensions["llm_settings"]
    return settings


def _pool_stats() -> dict[str, int]:
    return default_pool(_settings().max_workers, _settings().queue_limit).stats()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address; False for a name that is not "localhost"."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
