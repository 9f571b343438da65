"""The settings, read once from a mapping and frozen.

`Settings.from_env(os.environ)` is the only reader of these variables; everything else is handed the result.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .errors import ConfigError

__all__ = ["ENGINES", "Settings", "is_loopback", "nearest_setting"]

ENGINES = ("threads", "loop")
"""What may run a call: the thread pool, or greenlets on the event loop that awaits it."""

_ALIKE = 0.85  # LLM_MAX_TOKENS, another program's, comes as near as 0.83 to LLM_MAX_WORKERS
_RANGES: dict[str, tuple[float, float]] = {
    "max_workers": (1, 1000),
    "queue_limit": (0, 100_000),
    "deadline_s": (0.001, 3600),
    "read_timeout_s": (0.001, 3600),
    "max_attempts": (1, 100),
    "batch_limit": (1, 10_000),
    "prompt_limit": (1, 1_000_000),
    "task_queue_limit": (1, 1_000_000),
    "task_result_ttl_s": (1, 30 * 86_400),
    "account_limit": (0, 100_000),
}


@dataclass(frozen=True)
class Settings:
    """Everything that an operator can set, already checked.

    Attributes:
        max_workers: LLM_MAX_WORKERS, threads per process that run blocking calls.
        queue_limit: LLM_QUEUE_LIMIT, calls that may wait for a thread.
        deadline_s: LLM_DEADLINE_S, seconds for the whole of one call.
        read_timeout_s: LLM_READ_TIMEOUT_S, seconds between two pieces of a reply; None leaves it to the client.
        max_attempts: LLM_MAX_ATTEMPTS, attempts of one call on the pool, the first counted.
        batch_limit: LLM_BATCH_LIMIT, prompts in one batch request.
        prompt_limit: LLM_PROMPT_LIMIT, characters that one call of the DeepSeek client may send, context included.
        account_limit: LLM_ACCOUNT_LIMIT, calls in flight of the whole account over all processes and hosts; 0 for off.
        use_async: USE_ASYNC_DEEPSEEK; False runs each call in its caller's thread.
        transport: DEEPSEEK_TRANSPORT; False installs nothing below the legacy client.
        api_key: DEEPSEEK_API_KEY, "" when there is none. Not in the repr.
        base_url: DEEPSEEK_BASE_URL without a trailing slash.
        model: DEEPSEEK_MODEL, "" leaves the client's own.
        log_format: LOG_FORMAT, "text" or "json".
        web_api_token: WEB_API_TOKEN, "" lets everybody call. Not in the repr.
        celery_broker_url: CELERY_BROKER_URL, the server that queues tasks, "" for none. Not in the repr.
        celery_result_backend: CELERY_RESULT_BACKEND, the same server, or "". Not in the repr.
        task_queue_limit: TASK_QUEUE_LIMIT, tasks that may wait for a worker.
        task_result_ttl_s: TASK_RESULT_TTL_S, seconds that an ended task is kept.
        worker_metrics: WORKER_METRICS, "host:port" where a worker of the queue shows its metrics, "" for nowhere.

    Raises:
        ConfigError: a number is out of its range, or the account's limit has no server.

    Threads: immutable.
    """

    max_workers: int = 5
    queue_limit: int = 100
    deadline_s: float = 25.0
    read_timeout_s: float | None = None
    max_attempts: int = 3
    batch_limit: int = 100
    prompt_limit: int = 20_000
    account_limit: int = 0
    engine: str = "threads"
    use_async: bool = True
    transport: bool = True
    api_key: str = field(default="", repr=False)
    base_url: str = "https://api.deepseek.com"
    model: str = ""
    log_format: str = "text"
    web_api_token: str = field(default="", repr=False)
    celery_broker_url: str = field(default="", repr=False)
    celery_result_backend: str = field(default="", repr=False)
    task_queue_limit: int = 1000
    task_result_ttl_s: int = 3600
    worker_metrics: str = ""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name}={value!r}: need {low} to {high}")
        if self.engine == "loop" and not self.transport:
            raise ConfigError("LLM_ENGINE='loop': need DEEPSEEK_TRANSPORT=1, without which calls block")
        if self.account_limit and not self.account_server_url:
            raise ConfigError(
                f"LLM_ACCOUNT_LIMIT={self.account_limit}: need the Redis or Valkey server that all hosts share, "
                "in CELERY_BROKER_URL"
            )

    @property
    def account_server_url(self) -> str:
        """The server through which all processes share the account's limit; may hold a password."""
        return self.celery_broker_url or self.celery_result_backend

    @property
    def is_upstream_local(self) -> bool:
        """Whether calls stay on this machine, as they do with the sandbox."""
        return is_loopback(urlsplit(self.base_url).hostname or "")

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Reads the variables that this project knows; an unset or blank one means its default.

        Raises:
            ConfigError: the first variable that is wrong: its name, its value (never a key's) and what is needed.
        """
        broker_url = _queue_url(env, "CELERY_BROKER_URL")
        return cls(
            max_workers=_whole(env, "LLM_MAX_WORKERS", cls.max_workers, *_RANGES["max_workers"]),
            queue_limit=_whole(env, "LLM_QUEUE_LIMIT", cls.queue_limit, *_RANGES["queue_limit"]),
            deadline_s=_seconds(env, "LLM_DEADLINE_S", *_RANGES["deadline_s"]) or cls.deadline_s,
            read_timeout_s=_seconds(env, "LLM_READ_TIMEOUT_S", *_RANGES["read_timeout_s"]),
            max_attempts=_whole(env, "LLM_MAX_ATTEMPTS", cls.max_attempts, *_RANGES["max_attempts"]),
            batch_limit=_whole(env, "LLM_BATCH_LIMIT", cls.batch_limit, *_RANGES["batch_limit"]),
            prompt_limit=_whole(env, "LLM_PROMPT_LIMIT", cls.prompt_limit, *_RANGES["prompt_limit"]),
            account_limit=_whole(env, "LLM_ACCOUNT_LIMIT", cls.account_limit, *_RANGES["account_limit"]),
            engine=_word(env, "LLM_ENGINE", cls.engine, ENGINES),
            use_async=_switch(env, "USE_ASYNC_DEEPSEEK", cls.use_async),
            transport=_switch(env, "DEEPSEEK_TRANSPORT", cls.transport),
            api_key=_key(env, "DEEPSEEK_API_KEY"),
            base_url=_url(env, "DEEPSEEK_BASE_URL", cls.base_url),
            model=_text(env, "DEEPSEEK_MODEL"),
            log_format=_word(env, "LOG_FORMAT", cls.log_format, ("text", "json")),
            web_api_token=_key(env, "WEB_API_TOKEN"),
            celery_broker_url=broker_url,
            celery_result_backend=_result_backend(env, "CELERY_RESULT_BACKEND", broker_url),
            task_queue_limit=_whole(
                env, "TASK_QUEUE_LIMIT", cls.task_queue_limit, *_RANGES["task_queue_limit"]
            ),
            task_result_ttl_s=_whole(
                env, "TASK_RESULT_TTL_S", cls.task_result_ttl_s, *_RANGES["task_result_ttl_s"]
            ),
            worker_metrics=_host_and_port(env, "WORKER_METRICS"),
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address; False for a name that is not "localhost"."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def nearest_setting(name: str, names: Iterable[str]) -> str:
    """The one of the names for which another one may be a misspelling; "" if none is near enough."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=_ALIKE)), "")


def _text(env: Mapping[str, str], name: str) -> str:
    return (env.get(name) or "").strip()


def _whole(env: Mapping[str, str], name: str, default: int, low: float, high: float) -> int:
    text = _text(env, name)
    if not text:
        return default
    # int() alone would also take "1_0", "+5" and digits of other scripts.
    if re.fullmatch("[0-9]{1,9}", text) and low <= int(text) <= high:
        return int(text)
    raise ConfigError(f"{name}={text!r}: need a whole number from {low} to {high}")


def _seconds(env: Mapping[str, str], name: str, low: float, high: float) -> float | None:
    text = _text(env, name)
    if not text:
        return None
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) and low <= float(text) <= high:
        return float(text)
    raise ConfigError(f"{name}={text!r}: need seconds, more than 0 and at most {high:g}")


def _switch(env: Mapping[str, str], name: str, default: bool) -> bool:
    text = _text(env, name)
    if not text:
        return default
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ConfigError(f"{name}={text!r}: need 1 or 0")


def _word(env: Mapping[str, str], name: str, default: str, known: tuple[str, str]) -> str:
    text = _text(env, name) or default
    if text.lower() not in known:
        raise ConfigError(f'{name}={text!r}: need "{known[0]}" or "{known[1]}"')
    return text.lower()


def _url(env: Mapping[str, str], name: str, default: str) -> str:
    text = _text(env, name)
    if not text:
        return default
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets that do not match, a port out of range
        good = False
    if "@" in text:
        raise ConfigError(f"{name} (not shown): need an address without user name and password")
    if not good or re.search(r"[\s?#]", text):
        raise ConfigError(f"{name}={text!r}: need an http or https address such as {default}")
    return text.rstrip("/")


def _queue_url(env: Mapping[str, str], name: str) -> str:
    """The address of a Redis or Valkey server, which may hold a password: no message shows it."""
    text = _text(env, name)
    if not text:
        return ""
    try:
        parts = urlsplit(text)
        if parts.scheme == "redis+socket":
            good = parts.path.startswith("/") and len(parts.path) > 1 and not parts.hostname
        else:
            good = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0
            good = good and re.fullmatch("/?[0-9]*", parts.path) is not None
    except ValueError:
        good = False
    if not good or re.search(r"\s", text):
        raise ConfigError(
            f"{name} (not shown): need redis://[:password@]host[:port][/database], rediss://... "
            "or redis+socket://[:password@]/path"
        )
    return text


def _result_backend(env: Mapping[str, str], name: str, broker_url: str) -> str:
    text = _queue_url(env, name)
    if text and broker_url and _server_of(text) != _server_of(broker_url):
        raise ConfigError(
            f"{name} (not shown): need the server of CELERY_BROKER_URL, or nothing: "
            "a task's record and its message are written in one step"
        )
    return text


def _server_of(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    if parts.scheme == "redis+socket":
        return "", 0, parts.path
    return parts.hostname or "", parts.port or 6379, ""


def _host_and_port(env: Mapping[str, str], name: str) -> str:
    text = _text(env, name)
    host, _, port = text.rpartition(":")
    if text and not (host and re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        raise ConfigError(f"{name}={text!r}: need host:port, such as 127.0.0.1:5002")
    return text


def _key(env: Mapping[str, str], name: str) -> str:
    text = _text(env, name)
    if not re.fullmatch("[!-~]*", text):  # what an HTTP header can carry without escaping
        raise ConfigError(f"{name} (not shown): need printable ASCII without blanks")
    return text
