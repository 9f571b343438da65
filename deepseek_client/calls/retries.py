"""What happens to a call that fails: whether it is tried again, and when."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Sequence

from ..errors import BadReply, DeepSeekError
from ..fork_safe import ForkSafeLock
from ..settings import Settings
from .breaker import Breaker
from .call import Guard
from .leases import account_leases

__all__ = ["Policy", "default_policy"]

# Exponential back-off with full jitter: the n-th wait is a random part of the base doubled n - 1 times. Source of the
# rule: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
_BACK_OFF_S = 0.5
_LONGEST_BACK_OFF_S = 8.0

# A retry takes a token, a call brings a tenth of one. Source of the numbers: gRPC proposal A6, retry throttling.
_TOKENS = 10.0
_TOKENS_PER_CALL = 0.1

_lock = ForkSafeLock()  # guards all budgets, for microseconds


class Policy:
    """Tries calls again where that makes sense, as often as a budget allows.

    A retryable failure is tried again up to LLM_MAX_ATTEMPTS in all, a bad reply once. The waits are random parts of
    0.5, 1, 2 ... 8 s after what the API's Retry-After asks for, and end before the deadline or are not begun. All
    retries together are a tenth of the calls, and ten, so that an outage is not multiplied.

    Args:
        settings: their max_attempts, of one call and the first counted, deadline_s, for the breaker, and what they say
            of the account's limit.

    Attributes:
        breaker: refuses calls while the API keeps failing; while it is open nothing is tried again.

    Raises:
        ConfigError: redis-py, which the account's limit needs, is not installed.

    Threads: any.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_attempts = settings.max_attempts
        self.breaker = Breaker(settings.deadline_s)
        self._leases = account_leases(settings)
        self._tokens = _TOKENS  # guarded by _lock

    @property
    def guards(self) -> tuple[Guard, ...]:
        """What each call must pass."""
        # The breaker last: it may open while an attempt waits for its place.
        return (self.breaker,) if self._leases is None else (self._leases, self.breaker)

    def note_call(self) -> None:
        """A call begins: the budget grows by its part."""
        with _lock:
            self._tokens = min(_TOKENS, self._tokens + _TOKENS_PER_CALL)

    def seconds_to_next(self, failures: Sequence[DeepSeekError], deadline: float) -> float | None:
        """How long to wait before the call is tried again; None when it is not.

        Args:
            failures: of its attempts so far, at least one.
            deadline: moment on `time.monotonic()` that no wait passes.
        """
        error = failures[-1]
        bad_replies = sum(isinstance(failure, BadReply) for failure in failures)
        if not error.retryable or len(failures) >= self._max_attempts or bad_replies > 1:
            return None
        wait_s = random.uniform(0, min(_LONGEST_BACK_OFF_S, _BACK_OFF_S * 2 ** (len(failures) - 1)))
        wait_s += error.retry_after_s or 0
        if time.monotonic() + wait_s >= deadline or self.breaker.refusal() is not None:
            return None
        return wait_s if self._take_token() else None

    def _take_token(self) -> bool:
        with _lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


@functools.lru_cache(maxsize=100)
def default_policy(api_key: str, settings: Settings) -> Policy:
    """The process-wide policy of this account under these settings, made at the first request.

    Threads: any.
    """
    return Policy(settings)
