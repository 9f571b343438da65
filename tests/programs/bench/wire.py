"""What every peer sends and must get back."""

from __future__ import annotations

from typing import Any

__all__ = ["KEY", "MODEL", "THINKING", "body_of", "is_answer", "prompts", "text_in"]

KEY = "sk-bench"
MODEL = "deepseek-flash"
THINKING = {"type": "disabled"}


def prompts(count: int) -> list[str]:
    """Different ones, so that an answer to another's prompt would be seen."""
    return [f"第 {number} 位道友问：御剑飞行要到什么境界？" for number in range(count)]


def body_of(prompt: str) -> dict[str, Any]:
    """What the legacy client sends, and thinking off, without which the API's answers to it are blank."""
    return {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are a helpful game AI assistant."},
            {"role": "user", "content": prompt},
        ],
        "temperature": 0.7,
        "max_tokens": 200,
        "thinking": THINKING,
    }


def text_in(reply: dict[str, Any]) -> str:
    """The text of a completion."""
    text: str = reply["choices"][0]["message"]["content"]
    return text


def is_answer(text: object, prompt: str) -> bool:
    """Whether the sandbox wrote this to answer that."""
    return text == f"沙盒已收到：「{prompt}」"
