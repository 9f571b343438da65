"""A local server that speaks today's DeepSeek API, so that everything runs with no key and no internet.

It is faithful where a client can be hurt: retired models, thinking that eats ``max_tokens``, blank lines
while it waits, error bodies, usage, the account's concurrency limit. It can be told to fail in every way a
network or the real API can (see `faults`). Chat answers are canned text that echoes the prompt, and every
reply carries the fingerprint ``fp_sandbox``.

    python -m deepseek_client.sandbox --port 8765

    with running(SandboxConfig(port=0, latency_ms=0)) as sandbox:
        sandbox.script([{"fault": "status", "status": 503}, {"fault": "reset_before_reply"}])
        requests.post(sandbox.url + "/chat/completions", ...)
"""

from .config import SandboxConfig
from .thread import RunningSandbox, running, start_in_thread

__all__ = ["RunningSandbox", "SandboxConfig", "running", "start_in_thread"]
