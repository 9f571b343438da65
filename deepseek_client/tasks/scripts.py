"""What the ledger does in the server, each in one step: nothing can stop between a record and its message.

The keys, all behind one prefix with a hash tag, so that they lie in one slot of a cluster:

    task:<id>    hash    state, method, body, request_id, submitted, started, ended (microseconds), fence, sends, ...
    pending      zset    ids that wait, by the moment of their submission
    running      zset    ids that a worker has, by the moment (ms) at which its lease ends
    key:<hash>   hash    the task that an Idempotency-Key has made
    workers      zset    worker processes, by the moment (ms) until which they count as alive
    ended:<n>    hash    how many tasks were completed and failed in the ten minutes number n since 1970
    queue, unacked       kombu's: messages that wait, messages that a worker holds
    id-key       string  what ids are proved with
"""

from __future__ import annotations

__all__ = [
    *(
        "ATTEND",
        "CANCEL",
        "FINISH",
        "HELLO",
        "LOOK",
        "OVERVIEW",
        "PREFIX",
        "RESEND",
        "START",
        "SUBMIT",
        "SWEEP",
    ),
    "WITHDRAW",
]

PREFIX = "{deepseek}:"

_COMMON = f"""
local P = '{PREFIX}'
local function now_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end
local function is_ended(state)
  return state == 'completed' or state == 'failed' or state == 'cancelled'
end
local function period()
  return math.floor(now_us() / 600e6)
end
-- Ends a task, and tells the processes that wait for it; body and watchers are no longer needed.
-- Removes first: on a full server only a script that has already written something may add, and the result is paid for.
local function close(id, state, outcome, ttl_s)
  local record = P .. 'task:' .. id
  local listeners = redis.call('HMGET', record, 'watchers', 'runner')
  redis.call('HDEL', record, 'body', 'run', 'runner', 'watchers', 'missing')
  redis.call('HSET', record, 'state', state, 'outcome', outcome, 'ended', string.format('%.0f', now_us()))
  redis.call('ZREM', P .. 'pending', id)
  redis.call('ZREM', P .. 'running', id)
  redis.call('EXPIRE', record, ttl_s)
  if state ~= 'cancelled' then
    local ended = P .. 'ended:' .. period()
    redis.call('HINCRBY', ended, state, 1)
    redis.call('EXPIRE', ended, 4200)
  end
  for _, channels in ipairs(listeners) do
    for channel in string.gmatch(channels or '', '%S+') do
      redis.call('PUBLISH', channel, id .. ' ' .. state)
    end
  end
end
"""

HELLO = (
    _COMMON
    + """
-- ARGV: an id key to keep if there is none. Gives the clock in microseconds, and the id key.
local key = redis.call('GET', P .. 'id-key')
if not key then
  redis.call('SET', P .. 'id-key', ARGV[1])
  key = ARGV[1]
end
return {string.format('%.0f', now_us()), key}
"""
)

SUBMIT = (
    _COMMON
    + """
-- ARGV: id, not after (us), limit, method, body, request id, message, key's hash or '', body's hash, key's life (s)
local id, key = ARGV[1], ARGV[8]
local now = now_us()
if now > tonumber(ARGV[2]) then return {'late'} end
if key ~= '' then
  local known = redis.call('HMGET', P .. 'key:' .. key, 'id', 'body')
  if known[1] then
    if known[2] ~= ARGV[9] then return {'other body'} end
    -- Somebody was answered with it: whoever does not know whether it was taken must not take it back.
    if redis.call('EXISTS', P .. 'task:' .. known[1]) == 1 then
      redis.call('HSET', P .. 'task:' .. known[1], 'wanted', 1)
    end
    return {'repeated', known[1]}
  end
end
if redis.call('EXISTS', P .. 'task:' .. id) == 1 then return {'accepted'} end
-- The messages of cancelled tasks stay until a worker takes them: they are bounded, too.
local limit = tonumber(ARGV[3])
if redis.call('ZCARD', P .. 'pending') >= limit then return {'full'} end
if redis.call('LLEN', P .. 'queue') >= 2 * limit + 100 then return {'full'} end
local submitted = string.format('%.0f', now)
redis.call('HSET', P .. 'task:' .. id, 'state', 'pending', 'method', ARGV[4], 'body', ARGV[5],
  'request_id', ARGV[6], 'submitted', submitted, 'fence', 0, 'sends', 1)
redis.call('ZADD', P .. 'pending', submitted, id)
redis.call('LPUSH', P .. 'queue', ARGV[7])
if key ~= '' then
  redis.call('HSET', P .. 'key:' .. key, 'id', id, 'body', ARGV[9])
  redis.call('EXPIRE', P .. 'key:' .. key, ARGV[10])
end
return {'accepted'}
"""
)

WITHDRAW = (
    _COMMON
    + """
-- ARGV: id, key's hash or '', ttl (s)
local record = P .. 'task:' .. ARGV[1]
local found = redis.call('HMGET', record, 'state', 'wanted')
if not found[1] or found[2] or is_ended(found[1]) then return 0 end
close(ARGV[1], 'cancelled', '', ARGV[3])
redis.call('DEL', record)
if ARGV[2] ~= '' and redis.call('HGET', P .. 'key:' .. ARGV[2], 'id') == ARGV[1] then
  redis.call('DEL', P .. 'key:' .. ARGV[2])
end
return 1
"""
)

START = (
    _COMMON
    + """
-- ARGV: id, this run's name, lease (ms), the process's channel, starts of a task, outcome after those, ttl (s)
local id, record = ARGV[1], P .. 'task:' .. ARGV[1]
local found = redis.call('HMGET', record, 'state', 'run', 'fence')
local state, fence = found[1], tonumber(found[3])
if state == 'started' and found[2] ~= ARGV[2] then
  local lease = redis.call('ZSCORE', P .. 'running', id)
  if lease and tonumber(lease) > now_us() / 1000 then return {'running'} end
elseif state ~= 'pending' and state ~= 'started' then
  return {state or 'gone'}
end
if state == 'pending' or found[2] ~= ARGV[2] then
  if fence >= tonumber(ARGV[5]) then
    close(id, 'failed', ARGV[6], ARGV[7])
    return {'failed'}
  end
  fence = fence + 1
  redis.call('ZREM', P .. 'pending', id)  -- first, as in close()
  redis.call('HSET', record, 'state', 'started', 'fence', fence, 'run', ARGV[2], 'runner', ARGV[4],
    'started', string.format('%.0f', now_us()))
  redis.call('ZADD', P .. 'running', now_us() / 1000 + ARGV[3], id)
end
local task = redis.call('HMGET', record, 'method', 'body', 'request_id')
return {'go', fence, task[1], task[2], task[3]}
"""
)

FINISH = (
    _COMMON
    + """
-- ARGV: id, fence, state, outcome, ttl (s)
local found = redis.call('HMGET', P .. 'task:' .. ARGV[1], 'state', 'fence')
if found[2] ~= ARGV[2] then return 'dropped' end
if found[1] == ARGV[3] then return 'done' end  -- the same finish again: its answer was lost
-- Pending: its lease is over, for example because this server stood still, but no newer run has it yet.
if found[1] ~= 'started' and found[1] ~= 'pending' then return 'dropped' end
close(ARGV[1], ARGV[3], ARGV[4], ARGV[5])
return 'done'
"""
)

_FIELDS = """
local function told(id)
  local record = P .. 'task:' .. id
  local found = redis.call('HMGET', record, 'state', 'outcome', 'submitted')
  return {found[1], found[2], found[3], string.format('%.0f', now_us())}
end
"""

LOOK = (
    _COMMON
    + _FIELDS
    + """
-- ARGV: id, the channel of a process that waits for its end or ''
local record = P .. 'task:' .. ARGV[1]
local found = redis.call('HMGET', record, 'state', 'watchers')
if ARGV[2] ~= '' and found[1] and not is_ended(found[1]) then
  local watchers = found[2] or ''
  if not string.find(watchers, ARGV[2], 1, true) then
    redis.pcall('HSET', record, 'watchers', watchers .. ARGV[2] .. ' ')  -- a full server refuses: it is looked again
  end
end
return told(ARGV[1])
"""
)

CANCEL = (
    _COMMON
    + _FIELDS
    + """
-- ARGV: id, ttl (s)
local state = redis.call('HGET', P .. 'task:' .. ARGV[1], 'state')
if state and not is_ended(state) then close(ARGV[1], 'cancelled', '', ARGV[2]) end
return told(ARGV[1])
"""
)

SWEEP = (
    _COMMON
    + """
-- ARGV: grace (ms), starts, outcome after that, ttl (s). Gives {id, sends} of each task to be sent again, oldest first.
local now = now_us()
local lost = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'running', '-inf', now / 1000, 'LIMIT', 0, 200)) do
  local record = P .. 'task:' .. id
  local found = redis.call('HMGET', record, 'state', 'fence', 'submitted')
  redis.call('ZREM', P .. 'running', id)
  if found[1] == 'started' then
    if tonumber(found[2]) >= tonumber(ARGV[2]) then
      close(id, 'failed', ARGV[3], ARGV[4])
    else
      redis.call('HSET', record, 'state', 'pending')
      redis.call('HDEL', record, 'run', 'runner')
      redis.call('ZADD', P .. 'pending', found[3], id)
      lost[#lost + 1] = {id, redis.call('HINCRBY', record, 'sends', 1)}
    end
  end
end

local function id_in(message)
  return string.match(message, '"delivery_tag": *"([^".]+)')
end
-- The queue is in the order of submission. A task that is older than the next message has lost its own, if no worker
-- holds it: so a loss is seen however long the queue is.
local oldest = now
local last = redis.call('LRANGE', P .. 'queue', -50, -1)
if #last > 0 then
  oldest = 0
  for place = #last, 1, -1 do
    local score = redis.call('ZSCORE', P .. 'pending', id_in(last[place]) or '')
    if score then
      oldest = tonumber(score)
      break
    end
  end
end
local queued = nil
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'pending', '-inf', '(' .. string.format('%.0f', oldest),
    'LIMIT', 0, 1000)) do
  local record = P .. 'task:' .. id
  local found = redis.call('HMGET', record, 'sends', 'missing')
  local is_here = redis.call('HEXISTS', P .. 'unacked', id .. '.' .. (found[1] or '')) == 1
  if not found[1] then  -- its record was evicted or deleted by hand
    redis.call('ZREM', P .. 'pending', id)
    is_here = true
  elseif not is_here then
    if not queued then  -- what was sent again may be out of order
      queued = {}
      for _, message in ipairs(redis.call('LRANGE', P .. 'queue', -1000, -1)) do
        queued[id_in(message) or ''] = true
      end
    end
    is_here = queued[id]
  end
  if is_here then
    if found[2] then redis.call('HDEL', record, 'missing') end
  elseif not found[2] then  -- kombu notes a message a moment after it took it
    redis.call('HSET', record, 'missing', string.format('%.0f', now))
  elseif now - tonumber(found[2]) >= ARGV[1] * 1000 then
    redis.call('HDEL', record, 'missing')
    lost[#lost + 1] = {id, redis.call('HINCRBY', record, 'sends', 1)}
  end
end
return lost
"""
)

RESEND = (
    _COMMON
    + """
-- ARGV: id, sends, message. To the end that workers take from: it has waited long enough.
local found = redis.call('HMGET', P .. 'task:' .. ARGV[1], 'state', 'sends')
if found[1] ~= 'pending' or found[2] ~= ARGV[2] then return 0 end
redis.call('RPUSH', P .. 'queue', ARGV[3])
return 1
"""
)

ATTEND = (
    _COMMON
    + """
-- ARGV: a worker process, how long it counts as alive from now on (ms)
local now = now_us() / 1000
redis.call('ZADD', P .. 'workers', now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', now)
return 1
"""
)

# The work of one look does not grow with the number of tasks.
OVERVIEW = (
    _COMMON
    + """
-- ARGV: how many tasks to name. Gives {now, waiting, running, completed, failed, workers, the oldest waiting one's
-- submission or '', {id, state, method, submitted}...}: those that run first, then those that wait longest.
local now = now_us()
local completed, failed = 0, 0
for n = period() - 5, period() do
  local found = redis.call('HMGET', P .. 'ended:' .. n, 'completed', 'failed')
  completed = completed + (found[1] or 0)
  failed = failed + (found[2] or 0)
end
local named = {}
for _, set in ipairs({'running', 'pending'}) do
  for _, id in ipairs(redis.call('ZRANGE', P .. set, 0, ARGV[1] - #named - 1)) do
    local found = redis.call('HMGET', P .. 'task:' .. id, 'state', 'method', 'submitted')
    if found[1] then named[#named + 1] = {id, found[1], found[2], found[3]} end
  end
  if #named >= tonumber(ARGV[1]) then break end
end
local oldest = redis.call('ZRANGE', P .. 'pending', 0, 0, 'WITHSCORES')[2] or ''
return {string.format('%.0f', now), redis.call('ZCARD', P .. 'pending'), redis.call('ZCARD', P .. 'running'),
  completed, failed, redis.call('ZCOUNT', P .. 'workers', now / 1000, '+inf'), oldest, named}
"""
)
