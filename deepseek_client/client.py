"""The legacy DeepSeek client: blocking, one `requests.post` per call, failures swallowed.

Frozen. Applications depend on exactly this behaviour; everything that makes it concurrent, observable or
stoppable lives around it, and nothing in here may know about that. `tests/test_client_is_untouched.py`
compares this file with a checksum.
"""

import json
import logging
import os

import requests

__all__ = ["PROMPT_TMPL", "DeepSeekClient"]

logger = logging.getLogger(__name__)

PROMPT_TMPL = """你是一个修仙世界文字游戏的意图解析器。请把玩家的话解析成一个 JSON 对象，只输出 JSON，不要任何其他文字。

场景：{scene}
玩家境界：{player_realm}
目标境界：{target_realm}
世界法则：{laws_summary}
玩家输入：{utterance}

输出字段：
- intent: 意图，取 attack、talk、move、cultivate、inventory、unknown 之一
- slots: 对象，意图的参数（如 target、item、place、skill），没有则为 {{}}
- allowed: 布尔值，该行为是否被允许
- reason: 不允许时用中文说明原因，允许时为空字符串

规则：
1. 跨越超过两个大境界的攻击不允许
2. 使用禁术不允许
"""

_LAWS = {
    "CROSS_REALM_KILL": "禁止跨境界斩杀",
    "FORBIDDEN_ARTS": "禁止使用禁术",
    "REALM_BREAKTHROUGH": "突破需渡劫",
}


class DeepSeekClient:
    """Calls DeepSeek's chat completions, blocking the calling thread.

    Args:
        api_key: empty means the environment variable DEEPSEEK_API_KEY; a missing key is a logged warning here
            and a failure of each call later.
        model: sent as it is.

    Threads: methods hold no state between calls and may run in any number of threads at once.
    """

    def __init__(self, api_key="", model="deepseek-chat"):
        self.api_key = api_key or os.getenv("DEEPSEEK_API_KEY", "")
        self.model = model
        self.base_url = "https://api.deepseek.com/v1"
        if not self.api_key:
            logger.warning("DEEPSEEK_API_KEY is not set: every call will fail")

    def chat(self, prompt):
        """Returns {"text": reply}; on any failure logs it and returns {"text": ""}."""
        try:
            reply = self._call_openai(prompt)
            return {"text": reply["choices"][0]["message"]["content"]}
        except Exception as exc:
            logger.error("chat failed: %s", exc)
            return {"text": ""}

    def parse(self, utterance, ctx):
        """Returns the intent of what a player typed: {"intent", "slots", "allowed", "reason"}.

        On any failure logs it and returns intent "unknown", slots {}, allowed True, reason "".

        Args:
            utterance: what the player typed; its first 200 characters are sent.
            ctx: has scene, player.realm, target_realm and laws (each with code and enabled), as attributes or
                as keys; what is missing takes a default.
        """
        try:
            prompt = PROMPT_TMPL.format(
                scene=_field(ctx, "scene", "主城"),
                player_realm=_field(_field(ctx, "player", None), "realm", "炼气期"),
                target_realm=_field(ctx, "target_realm", "未知"),
                laws_summary=self._summarize_laws(_field(ctx, "laws", [])),
                utterance=utterance[:200],
            )
            reply = self._call_openai(prompt)
            data = json.loads(reply["choices"][0]["message"]["content"])
            return {
                "intent": data.get("intent", "unknown"),
                "slots": data.get("slots", {}),
                "allowed": data.get("allowed", True),
                "reason": data.get("reason", ""),
            }
        except Exception as exc:
            logger.error("parse failed: %s", exc)
            return {"intent": "unknown", "slots": {}, "allowed": True, "reason": ""}

    def _call_openai(self, prompt):
        if not self.api_key:
            raise ValueError("API key not configured")
        if "\r" in self.api_key or "\n" in self.api_key:
            raise ValueError("API key has a line break in it")  # requests would quote the key in its error
        verbose = os.getenv("DEEPSEEK_VERBOSE", "0") == "1"
        if verbose:
            logger.debug("prompt: %s", prompt)
        try:
            response = requests.post(
                f"{self.base_url}/chat/completions",
                headers={"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"},
                json={
                    "model": self.model,
                    "messages": [
                        {"role": "system", "content": "You are a helpful game AI assistant."},
                        {"role": "user", "content": prompt},
                    ],
                    "temperature": 0.7,
                    "max_tokens": 200,
                },
                timeout=10,
            )
            response.raise_for_status()
            reply = response.json()
        except Exception as exc:
            logger.error("DeepSeek request failed: %s", exc)
            raise
        if verbose:
            logger.debug("reply: %s", reply)
        return reply

    def _summarize_laws(self, laws):
        enabled = [_field(law, "code", "") for law in laws or [] if _field(law, "enabled", True)]
        return "；".join(_LAWS[code] for code in enabled if code in _LAWS) or "无特殊限制"


def _field(obj, name, default):
    value = obj.get(name) if isinstance(obj, dict) else getattr(obj, name, None)
    return default if value is None or value == "" else value
