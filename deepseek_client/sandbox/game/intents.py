"""Reading intent and slots off an utterance by its verbs, in Chinese and in simple English."""

from __future__ import annotations

import re

__all__ = ["intent_of", "slots_of"]

# The lookarounds cut out what only looks like a verb: 打 in 打坐, 说 in 传说, 去 in 失去.
_VERBS = {
    "attack": (
        r"攻击|袭击|偷袭|进攻|攻打|击杀|斩杀|刺杀|斩|(?<!自)杀(?![手气])|砍|劈|揍|轰|决斗|挑战|对付"
        r"|打(?![坐听开招扰造扫理算量扮包])"
        r"|\b(?:attack|kill|slay|strike|hit|fight)\b"
    ),
    "talk": (
        r"(?<![传听据小])说|聊|交谈|谈|对话|搭话|打听|打招呼|询问|(?<![访学顾])问|告诉|请教|拜访|回答|回复"
        r"|\b(?:talk|speak|say|ask|chat|tell)\b"
    ),
    "cultivate": (
        r"修炼|修行|打坐|闭关|突破|吐纳|参悟|悟道|冲击瓶颈|冲击(?=炼气|筑基|金丹|元婴|化神|炼虚|合体|大乘|渡劫)"
        r"|渡劫(?![期初中后圆修老大])"
        r"|\b(?:cultivate|meditate|break ?through)\b"
    ),
    "inventory": (
        r"背包|储物袋|储物戒|乾坤袋|行囊|包裹|物品|道具|服用|吞服|拾取|捡起|丢弃"
        r"|\b(?:inventory|backpack|bag|items?)\b"
    ),
    "move": (
        r"前往|飞往|赶往|飞向|飞到|走到|走向|走进|进入|来到|回到|返回|离开|传送|移动|走|飞|跑|逃|(?<!失)去(?!世)"
        r"|\b(?:move|go|walk|fly|run|travel|enter|leave)\b"
    ),
}
# An art that is aimed at someone (对妖兽施展火球术) needs no other verb to be an attack.
_AIMED_ART = r"[对向朝][^，。！？、,.!?]{1,16}?(?:施展|施放|释放|祭出)"
_INTENTS = {intent: re.compile(verbs, re.IGNORECASE) for intent, verbs in _VERBS.items()}
_INTENTS["attack"] = re.compile(f"{_AIMED_ART}|{_VERBS['attack']}", re.IGNORECASE)
# Of these the first in the sentence is meant: what follows a 说 or an 攻击 is its content.
_LEADING = ("attack", "talk", "cultivate")
# These two only set the scene for the others (去洞府修炼, 用背包里的剑攻击).
_TRAILING = ("inventory", "move")

_NAME = r"[^\s，。！？、；：「」“”,.!?;:]{1,16}"
_END = r"(?=$|[\s，。！？、；：「」“”,.!?;:])"
_MEASURE = r"(?:了|死|掉|向)?(?:那|这|眼前|面前)?一?(?:[只个名位头条群])?的?"
_OTHER = "对|向|朝|把|将|与|和|跟|同|找|用"
_LEADING_VERBS = "|".join(_VERBS[intent] for intent in _LEADING)
_ACTION = rf"(?:发起|发动|施展|施放|释放|祭出|进行|一?战|{_VERBS['attack']})"
_PLACE = (
    r"(?:前往|飞往|赶往|飞向|飞到|走到|走向|走进|进入|来到|回到|返回|离开|传送到|移动到|逃到|(?<!失)去(?!世))"
)
_ENGLISH_NAME = r"(?:the\s+|an?\s+)?([a-z][a-z' -]*?)(?=\s+(?:with|using|at|in|about)\b|\s*[.,!?;]|\s*$)"


def _all(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


# The first pattern that matches fills the slot with its group.
_SLOTS: dict[str, dict[str, tuple[re.Pattern[str], ...]]] = {
    "attack": {
        "target": _all(
            rf"(?:对|向|朝|把|将|与|和|跟)({_NAME}?){_ACTION}",
            rf"(?:{_VERBS['attack']}){_MEASURE}({_NAME}){_END}",
            rf"\b(?:attack|kill|slay|strike|hit|fight)\s+{_ENGLISH_NAME}",
        ),
        "skill": _all(
            rf"(?:使用|运用|施展|施放|释放|祭出|发动|用)({_NAME}?)(?={_OTHER}|去|来|{_LEADING_VERBS}|$|[\s，。！？、,.!?])",
            r"\b(?:with|using)\s+(?:the\s+|an?\s+|my\s+)?([a-z][a-z' -]*?)\s*(?=$|[.,!?])",
        ),
        "place": _all(rf"{_PLACE}(?!{_OTHER})({_NAME}?)(?=把|将|{_LEADING_VERBS})"),
    },
    "talk": {
        "target": _all(
            rf"(?:对|向|与|和|跟|同|找)({_NAME}?)(?={_VERBS['talk']})",
            rf"(?:询问|请教|拜访|告诉|问)(?![问路])({_NAME}?)(?=关于|如何|怎么|怎样|什么|哪|为何|为什么|[吗呢]|{_END})",
            rf"\b(?:talk|speak|chat)\s+(?:to|with)\s+{_ENGLISH_NAME}",
            rf"\b(?:ask|tell)\s+{_ENGLISH_NAME}",
        ),
    },
    "cultivate": {
        "skill": _all(rf"(?:修炼|参悟|运转)({_NAME}?(?:[诀功法经典篇掌拳阵术])){_END}"),
        "place": _all(rf"(?:{_PLACE}|在)(?!{_OTHER})({_NAME}?)(?={_VERBS['cultivate']})"),
    },
    "inventory": {
        "item": _all(
            rf"(?:服用|吞服|拾取|捡起|丢弃|取出|拿出)(?:了|一?[颗枚把张个件株瓶])*({_NAME}?)(?:放|{_END})"
        ),
    },
    "move": {
        "place": _all(
            rf"{_PLACE}(?!{_OTHER})({_NAME}){_END}",
            rf"(?:往|向|朝)({_NAME}?)(?=走|飞|跑|去|移动|逃)",
            r"\b(?:move|go|walk|fly|run|travel)\s+(?:back\s+)?(?:in)?(?:to|towards?)\s+" + _ENGLISH_NAME,
            rf"\b(?:enter|leave)\s+{_ENGLISH_NAME}",
        ),
    },
}
_PARTICLES = re.compile(r"(?:一下|过去|看看|[吧了啊呀呢吗的])+$")


def intent_of(utterance: str) -> str:
    """One of attack, talk, move, cultivate, inventory, unknown."""
    starts = {
        intent: found.start()
        for intent in _LEADING
        if (found := _INTENTS[intent].search(utterance)) is not None
    }
    if starts:
        return min(starts, key=lambda intent: starts[intent])
    return next((intent for intent in _TRAILING if _INTENTS[intent].search(utterance)), "unknown")


def slots_of(intent: str, utterance: str) -> dict[str, str]:
    """The slots of `intent` that can be read off; those that cannot are absent."""
    slots: dict[str, str] = {}
    for slot, patterns in _SLOTS.get(intent, {}).items():
        for pattern in patterns:
            found = pattern.search(utterance)
            name = _PARTICLES.sub("", found.group(1)).strip() if found else ""
            if name:
                slots[slot] = name
                break
    return slots
