"""The account's places on a Redis or Valkey server, which all processes of all hosts share; the edge to redis-py.

What lies there, all under one hash tag: each process that lives, by the moment of its last beat; the places that each
holds; everybody's waiting calls in one order; what was granted to a process that did not ask just now. Every step is
one script, and every moment is one of the server's clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import redis

from .queue_connection import connect

__all__ = ["AccountServer", "Standing"]

_PREFIX = "{deepseek}:lease:"
_POP_S = 2.0
_POP_TIMEOUT_S = 3.0

_EXCHANGE = """
local prefix, me, news = ARGV[1], ARGV[2], cjson.decode(ARGV[3])
local beats, waiting, total = KEYS[1], prefix .. 'waiting', prefix .. 'total'
local anew, lowered = prefix .. 'anew', prefix .. 'lowered'
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function forget(process)
    redis.call('DECRBY', total, redis.call('SCARD', prefix .. 'held:' .. process))
    redis.call('DEL', prefix .. 'held:' .. process, prefix .. 'grants:' .. process)
    redis.call('ZREM', beats, process)
end

local function hold(process, token)
    if redis.call('SADD', prefix .. 'held:' .. process, token) == 1 then redis.call('INCR', total) end
end

for _, process in ipairs(redis.call('ZRANGEBYSCORE', beats, '-inf', '(' .. (now - news.expiry_ms))) do
    forget(process)
end
if news.joins then
    for _, process in ipairs(news.replaces) do forget(process) end
    if redis.call('ZCARD', beats) == 0 then
        -- What other processes have in flight, if there are any, they are about to tell.
        redis.call('DEL', waiting, total, anew)
        redis.call('HSET', anew, 'at', now)
    end
    local expected = redis.call('HGET', anew, 'expected') or 0
    redis.call('HSET', anew, 'expected', math.max(expected, news.processes))
elseif not redis.call('ZSCORE', beats, me) then
    return false
end
redis.call('ZADD', beats, now, me)

for _, token in ipairs(news.wanted) do
    redis.call('ZADD', waiting, redis.call('INCR', prefix .. 'order'), me .. ' ' .. token)
end
for _, token in ipairs(news.taken) do
    redis.call('ZREM', waiting, me .. ' ' .. token)
    hold(me, token)
end
for _, token in ipairs(news.gone) do
    redis.call('ZREM', waiting, me .. ' ' .. token)
    if redis.call('SREM', prefix .. 'held:' .. me, token) == 1 then redis.call('DECR', total) end
end

-- What the API's refusals have lowered the limit to, and what has come back of it since.
local limit = news.limit
local low = redis.call('HMGET', lowered, 'to', 'at')
if low[1] then
    local steps = math.floor((now - low[2]) / news.recovery_ms)
    limit = math.min(limit, low[1] + steps * math.max(1, math.floor(news.limit / 20)))
end
if news.refused_at then
    local is_named = news.refused_at > 0 and news.refused_at < limit
    -- Many calls are refused at once: together they are one step.
    if is_named or not low[2] or now - low[2] >= 1000 then
        limit = is_named and news.refused_at or math.max(1, limit - math.max(1, math.floor(limit / 10)))
        redis.call('HSET', lowered, 'to', limit, 'at', now)
    end
end

local processes = redis.call('ZCARD', beats)
local share = limit
local start = redis.call('HMGET', anew, 'at', 'expected')
if now - (start[1] or 0) < news.expiry_ms then
    share = math.max(1, math.floor(limit / math.max(start[2], processes)))
end

-- A process that was killed hears of no grant any more; the moment of the oldest one that lies there tells.
local function may_have_more(process)
    if redis.call('SCARD', prefix .. 'held:' .. process) >= share then return false end
    local oldest = process ~= me and redis.call('LINDEX', prefix .. 'grants:' .. process, 0)
    return not oldest or now - string.match(oldest, '^%d+') < news.unheard_ms
end

local free = limit - (redis.call('GET', total) or 0)
local granted, passed = {}, {}
while free > 0 and #passed < news.passed do
    local first = redis.call('ZPOPMIN', waiting)
    if #first == 0 then break end
    local process, token = string.match(first[1], '^(%S+) (%S+)$')
    if redis.call('ZSCORE', beats, process) then
        if may_have_more(process) then
            hold(process, token)
            free = free - 1
            if process == me then
                table.insert(granted, token)
            else
                redis.call('RPUSH', prefix .. 'grants:' .. process, now .. ' ' .. token)
            end
        else
            table.insert(passed, first)
        end
    end
end
for _, entry in ipairs(passed) do redis.call('ZADD', waiting, entry[2], entry[1]) end
for _, grant in ipairs(redis.call('LRANGE', prefix .. 'grants:' .. me, 0, -1)) do
    table.insert(granted, string.match(grant, '%d+$'))
end
redis.call('DEL', prefix .. 'grants:' .. me)
return {limit, processes, granted}
"""


class Standing(NamedTuple):
    """How things stand for a process.

    Attributes:
        limit: of the account at this moment; LLM_ACCOUNT_LIMIT, or lower after refusals of the API.
        processes: that share it.
        granted: tokens of this process's waiting calls that have a place now.
    """

    limit: int
    processes: int
    granted: list[str]


class AccountServer:
    """The server, as one process sees it. Opens no connection before it is first asked.

    Args:
        url: as in CELERY_BROKER_URL, of a Redis or Valkey server from version 6.2 on.

    Raises:
        ValueError: the URL is none.

    Threads: `exchange` and `next_grant` each belong to one thread.
    """

    def __init__(self, url: str) -> None:
        self._commands = connect(url, decode_responses=True)
        self._pops = connect(url, decode_responses=True, socket_timeout=_POP_TIMEOUT_S)
        self._script = self._commands.register_script(_EXCHANGE)

    def exchange(self, process: str, news: Mapping[str, Any]) -> Standing | None:
        """Tells the server what is new at this process; returns how things stand, None if it does not know the process.

        Args:
            news: `joins` (whether the process makes itself known, in place of those that it `replaces`), tokens that
                are `wanted`, were `taken` without asking, are `gone`; `limit` and `processes` as known here,
                `refused_at` (what a refusal of the API names, 0 for one that names nothing, None without one), `passed`
                (how many waiting calls are passed over at most for the sake of those behind them),
                `expiry_ms`, `unheard_ms` and `recovery_ms`.

        Raises:
            ConnectionError: the server is away, or cannot do it. Whether it has taken the news is not known.
        """
        told = json.dumps({name: value for name, value in news.items() if value is not None})
        try:
            answer: Any = self._script([_PREFIX + "beats"], [_PREFIX, process, told])
        except redis.RedisError as exc:
            raise ConnectionError(str(exc)) from exc
        return None if answer is None else Standing(*answer)

    def next_grant(self, process: str) -> str | None:
        """Waits up to 2 s for a place that another process has left to this one; returns the token, or None.

        Raises:
            ConnectionError: as `exchange`; a token may have been lost.
        """
        try:
            answer = cast(
                "list[str] | None", self._pops.blpop([f"{_PREFIX}grants:{process}"], timeout=_POP_S)
            )
        except redis.RedisError as exc:
            raise ConnectionError(str(exc)) from exc
        return None if answer is None else answer[1].split()[1]

    def close(self) -> None:
        """Closes the connections, which open again when they are needed."""
        self._commands.close()
        self._pops.close()
