"""The rule engine that answers parse prompts, from the text of the prompt alone."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from .intents import intent_of, slots_of

__all__ = ["is_parse_prompt", "parse_reply"]

_UTTERANCE = "玩家输入"
_OUTPUT = "输出字段"
# The utterance begins at the first such pair of lines: a label inside the utterance can only come later.
_UTTERANCE_BEGINS = (
    re.compile(r"^世界法则[：:].*\n玩家输入[：:]", re.MULTILINE),
    re.compile(r"玩家输入[：:]"),
)
_REALMS = ("炼气", "筑基", "金丹", "元婴", "化神", "炼虚", "合体", "大乘", "渡劫")
_ALIASES = {"练气": "炼气", "结丹": "金丹"}
_REALM = re.compile("|".join((*_REALMS, *_ALIASES)))
_REALMS_APART_LIMIT = 2
_REALM_CHARS = 12  # of a realm in a reason: a parse call allows the whole reply 200 tokens
_FORBIDDEN = re.compile(
    r"禁术|血祭|噬魂|夺舍|魔功|炼魂|摄魂|抽魂|搜魂|炼尸|养尸|采补|邪术|吸星大法|化血大法"
    r"|\bforbidden (?:art|technique|spell)s?\b|\bblood sacrifice\b|\bsoul devour\w*",
    re.IGNORECASE,
)
_TRIBULATION_LAW = "突破需渡劫"


class _Situation(NamedTuple):
    player_realm: str
    target_realm: str
    laws: str
    utterance: str


def is_parse_prompt(prompt: str) -> bool:
    """Whether a prompt asks to parse an utterance; anything else is chat."""
    return _OUTPUT in prompt and (f"{_UTTERANCE}：" in prompt or f"{_UTTERANCE}:" in prompt)


def parse_reply(prompt: str) -> dict[str, Any]:
    """The intent, its slots and the verdict for the utterance of a parse prompt.

    Forbidden arts are refused whatever the intent; an attack is refused when the great realms are more than
    two apart; a realm that is not known forbids nothing.
    """
    situation = _read(prompt)
    intent = intent_of(situation.utterance)
    slots = slots_of(intent, situation.utterance)
    if intent == "cultivate" and "突破" in situation.utterance and _TRIBULATION_LAW in situation.laws:
        slots["law"] = _TRIBULATION_LAW
    reasons = [_forbidden_art(situation)]
    if intent == "attack":
        reasons.append(_cross_realm(situation))
    reason = "；".join(filter(None, reasons))
    return {"intent": intent, "slots": slots, "allowed": not reason, "reason": reason}


def _read(prompt: str) -> _Situation:
    begins = next(found for label in _UTTERANCE_BEGINS if (found := label.search(prompt)))
    head, rest = prompt[: begins.end()], prompt[begins.end() :]
    end = rest.rfind(_OUTPUT)
    utterance = rest if end < 0 else rest[:end]
    return _Situation(
        player_realm=_field(head, "玩家境界"),
        target_realm=_field(head, "目标境界"),
        laws=_field(head, "世界法则"),
        utterance=utterance.strip(),
    )


def _field(head: str, label: str) -> str:
    # The last one: a label that the scene quotes comes before the real one.
    values = re.findall(rf"^{label}[：:](.*)$", head, re.MULTILINE)
    return values[-1].strip() if values else ""


def _forbidden_art(situation: _Situation) -> str:
    found = _FORBIDDEN.search(situation.utterance)
    if found is None:
        return ""
    art = found.group()
    return "使用禁术不被允许" if art == "禁术" else f"使用禁术不被允许：「{art}」属于禁术"


def _cross_realm(situation: _Situation) -> str:
    player, target = _rank(situation.player_realm), _rank(situation.target_realm)
    if player is None or target is None or abs(player - target) <= _REALMS_APART_LIMIT:
        return ""
    return (
        f"跨境界攻击不被允许：玩家境界为{situation.player_realm[:_REALM_CHARS]}，"
        f"目标境界为{situation.target_realm[:_REALM_CHARS]}，"
        f"相差{abs(player - target)}个大境界"
    )


def _rank(realm: str) -> int | None:
    found = _REALM.search(realm)
    return _REALMS.index(_ALIASES.get(found.group(), found.group())) if found else None
