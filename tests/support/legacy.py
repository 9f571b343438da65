"""What the legacy client of a test is given: an address, a key, and the API's reply."""

from __future__ import annotations

from typing import Any

ENDPOINT = "https://api.deepseek.com/v1/chat/completions"
KEY = "sk-legacy-zqxw"


def completion(content: object) -> dict[str, Any]:
    """The API's reply with this content."""
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}
