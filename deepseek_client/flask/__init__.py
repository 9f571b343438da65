"""The joint to Flask: the extension, and the parts of it that an application may use by themselves."""

from __future__ import annotations

from ..telemetry.logs import handler as log_handler
from .extension import DeepSeek
from .gunicorn_bounds import bound_connections, has_body_come_too_slowly
from .gunicorn_leaving import gunicorn_conf, leave_with_gunicorn
from .loop import SharedLoop
from .metrics_page import metrics_view
from .problems import problem_of
from .streaming import sse

__all__ = [
    "DeepSeek",
    "SharedLoop",
    "bound_connections",
    "gunicorn_conf",
    "has_body_come_too_slowly",
    "leave_with_gunicorn",
    "log_handler",
    "metrics_view",
    "problem_of",
    "sse",
]
