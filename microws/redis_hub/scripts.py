"""
What Redis runs: Lua scripts, each atomic, over a log per topic.

The keys begin with the hub's prefix:

- ``e``: the epoch, 8 bytes, which names this life of the log; then what the server was when it began.
- ``o:TOPIC``: epoch; last offset, the offset after which it has all, the offset with which it began; the nonce of the
  last message; and what is kept: 0 for nothing, 1 for ``l:``, 2 for ``h:``.
- ``l:TOPIC``: the last records, in order of their offsets, which have no hole. With ``overflow="latest"``, ``h:TOPIC``:
  the newest record of each conflation key.
- ``k:TOPIC``: the offset and nonce of each message with a key. It outlives the epoch.
- ``p:PUBLISHER``: its last number. So a publish that is sent again is known.
- ``c:KEY``: who has claimed it.

A record is its offset (8 bytes), time (8), epoch (8), the nonce of the message before it (16); then what the publisher
made: nonce (publisher and number, 8 bytes each), kind, length of key, length of conflation key (1 byte each), key,
conflation key, payload.

On the channel of a topic comes each record, or nothing: then messages of the topic were lost.

An offset is never used again, even if Redis forgets its last messages: the first one of a topic is the time in
microseconds.
"""

import struct
from functools import lru_cache
from hashlib import sha1
from typing import Final, NamedTuple

__all__ = [
    "CLAIM",
    "EPOCH_SIZE",
    "KEEP_NUMBER",
    "MADE",
    "NONCE",
    "OPEN",
    "PUBLISH",
    "READ",
    "RECORD",
    "STORED",
    "Script",
    "call",
    "spec_of",
]

EPOCH_SIZE: Final = 8
# Offset, time, publisher, number, kind, length of the key, length of the conflation key.
RECORD: Final = struct.Struct("<Qd24xQQBBB")
# Publisher and number.
NONCE: Final = struct.Struct("<QQ")
# The part of it that the publisher makes.
MADE: Final = struct.Struct("<QQBBB")
# What ``k:`` has, and the answer for a message that was published before: offset, publisher, number.
STORED: Final = struct.Struct("<QQQ")

# Milliseconds that the last offset of a topic is kept after its last message: with history, so that clients resume (its
# ttl if that is longer); without, so that it is known after a cut whether a message was missed. And the last number of
# a publisher, so that it is known whether what is sent again was published.
_KEEP_HISTORY: Final = 30 * 86_400_000
_KEEP_OFFSET: Final = 3_600_000
KEEP_NUMBER: Final = 600_000
# The most milliseconds that Redis is told, exactly.
_MAX_TTL: Final = 1 << 53


class Script(NamedTuple):
    """A script. ``load`` precedes its use, once per server."""

    text: bytes
    sha: bytes


def call(script: Script, *arguments: bytes | int) -> tuple[bytes | int, ...]:
    """The command that runs ``script``."""
    return (b"EVALSHA", script.sha, 0, *arguments)


@lru_cache
def spec_of(history: int, ttl: float | None, *, by_key: bool) -> bytes:
    """How scripts are told what a topic keeps; empty without history."""
    if not history:
        return b""
    milliseconds = _KEEP_HISTORY if ttl is None else min(ttl * 1000, _MAX_TTL)
    return f"{history} {milliseconds} {by_key:d}".encode()


def _script(text: str) -> Script:
    for name, value in {
        "KEEP_HISTORY": _KEEP_HISTORY,
        "KEEP_OFFSET": _KEEP_OFFSET,
        "KEEP_NUMBER": KEEP_NUMBER,
    }.items():
        text = text.replace(name, str(value))
    encoded = text.encode()
    return Script(encoded, sha1(encoded, usedforsecurity=False).hexdigest().encode())


# Of all scripts that look at topics. ARGV[1] is the prefix.
_COMMON: Final = """
local call, sub, pack, unpack_bytes = redis.call, string.sub, struct.pack, struct.unpack
local prefix = ARGV[1]
local epoch = call('GET', prefix .. 'e')
if not epoch then return redis.error_reply('EPOCH the log was lost') end
epoch = sub(epoch, 1, 8)
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- What a topic keeps.
local specs = {}
local function parse(spec)
  local found = specs[spec]
  if not found then
    local history, ttl, by_key = string.match(spec, '(%d+) (%S+) (%d)')
    found = {history = tonumber(history or 0), ttl = tonumber(ttl or 0), by_key = by_key == '1'}
    found.expires = math.ceil(found.ttl)
    found.kind = found.history == 0 and 0 or found.by_key and 2 or 1
    specs[spec] = found
  end
  return found
end

-- Where a topic is: begun now, if nothing is known of it.
local function open(name)
  local found = call('GET', prefix .. 'o:' .. name)
  if found and sub(found, 1, 8) == epoch then
    local last, floor, begin, nonce, kind = unpack_bytes('<I8I8I8c16B', found, 9)
    return {last = last, floor = floor, begin = begin, nonce = nonce, kind = kind}
  end
  return {last = now, floor = now, begin = now, nonce = epoch .. string.rep('\\0', 8), kind = 0, is_new = true}
end

-- Records of another epoch, without the offset that belongs to them, or without the messages that another version of
-- the app has published, for which the topic keeps them in another way.
local function forget(name)
  call('DEL', prefix .. 'l:' .. name, prefix .. 'h:' .. name)
end

local function counter(topic)
  return epoch .. pack('<I8I8I8', topic.last, topic.floor, topic.begin) .. topic.nonce .. pack('B', topic.kind)
end
"""

# ARGV: the prefix; who the publisher is; how many of its messages, the first ones, may have been published before; the
# last number of the call before, if that is not answered yet, or 0; the last number of these messages; the prefix of
# channels; then of each message the topic, its spec, and what the publisher made. Answers with the offset of each; with
# offset and nonce of one that the topic has already under that key; with 0 for one that was published before, and is
# not kept; or with the error of one whose topic cannot be written, for example because a key has another type. Without
# messages it sends the publisher a sign of life, the way that messages go.
#
# If the call before has failed, this one does, too. So a publisher's messages are published in the order of their
# numbers, and one whose number is not above the last one was published.
PUBLISH: Final = _script(
    _COMMON
    + """
local number_key = prefix .. 'p:' .. ARGV[2]
local known = tonumber(call('GET', number_key) or 0)
if known < tonumber(ARGV[4]) then return redis.error_reply('BEHIND the call before has failed') end
-- First of all: this fails if Redis takes no writes, and then nothing is published.
call('SET', number_key, string.format('%.0f', math.max(known, tonumber(ARGV[5]))), 'PX', KEEP_NUMBER)
if #ARGV == 6 then
  call('PUBLISH', prefix .. 'r:' .. ARGV[2], '')
  return {}
end
-- All of a call that was under way for so long that another connection has sent its messages again.
local repeated = unpack_bytes('<I8', ARGV[9], 9) <= known and math.huge or tonumber(ARGV[3])
local channels = ARGV[6]
local stamp = pack('<d', now / 1000000) .. epoch
local topics, names = {}, {}
local answers, topic_of, told = {}, {}, {}

-- Offset and nonce of what the topic has, by nonce.
local function kept(name, spec)
  local found = {}
  local records = spec.by_key and call('HVALS', prefix .. 'h:' .. name)
  for _, record in ipairs(records or call('LRANGE', prefix .. 'l:' .. name, -512, -1)) do
    found[sub(record, 41, 56)] = (unpack_bytes('<I8', record))
  end
  return found
end

-- Offset and nonce of the messages with keys that the log has, if Redis has evicted ``k:``.
local function kept_keys(name, spec)
  local found = {}
  if call('EXISTS', prefix .. 'k:' .. name) == 1 then return found end
  local oldest = now / 1000 - spec.ttl
  local first = spec.by_key and 0 or -512
  repeat
    local records = spec.by_key and call('HVALS', prefix .. 'h:' .. name)
      or call('LRANGE', prefix .. 'l:' .. name, first, first + 511)
    local is_over = spec.by_key or #records < 512
    for _, record in ipairs(records) do
      local _, time = unpack_bytes('<I8d', record)
      local size = string.byte(record, 58)
      if time * 1000 < oldest then
        is_over = true
      elseif size > 0 then
        found[sub(record, 60, 59 + size)] = sub(record, 1, 8) .. sub(record, 41, 56)
      end
    end
    first = first - 512
  until is_over
  return found
end

for i = 7, #ARGV, 3 do
  local name, made = ARGV[i], ARGV[i + 2]
  local topic = topics[name]
  if not topic then
    topic = open(name)
    topic.before = topic.last
    topics[name] = topic
    names[#names + 1] = name
  end
  local spec = parse(ARGV[i + 1])
  local nonce = sub(made, 1, 16)
  local answer
  if #answers < repeated then
    topic.kept = topic.kept or kept(name, spec)
    answer = topic.kept[nonce] or (topic.nonce == nonce and topic.last)
    if not answer and unpack_bytes('<I8', made, 9) <= known then answer = 0 end
  end
  local key, conflation = '', ''
  if not answer and spec.history > 0 then
    local key_size, conflation_size = string.byte(made, 18, 19)
    key = sub(made, 20, 19 + key_size)
    conflation = sub(made, 20 + key_size, 19 + key_size + conflation_size)
    if key_size > 0 then
      topic.keys = topic.keys or kept_keys(name, spec)
      local stored = topic.keys[key] or call('HGET', prefix .. 'k:' .. name, key)
      if stored then
        -- The list has left it behind. What was published before the topic began is remembered until ``k:`` expires.
        local offset = unpack_bytes('<I8', stored)
        local is_left = not spec.by_key and offset > topic.begin and offset < topic.before - spec.history
        if not is_left then answer = stored end
      end
    end
  end
  if not answer then
    topic.last = topic.last + 1
    local record = pack('<I8', topic.last) .. stamp .. topic.nonce .. made
    topic.nonce = nonce
    topic.is_changed = true
    if key ~= '' then topic.keys[key] = pack('<I8', topic.last) .. nonce end
    if spec.history > 0 then
      topic.spec = spec
      topic.records = topic.records or {}
      if spec.by_key then
        topic.records[conflation] = record
      else
        topic.records[#topic.records + 1] = record
      end
    end
    told[#told + 1] = topic
    told[#told + 1] = channels .. name
    told[#told + 1] = record
    answer = topic.last
  end
  answers[#answers + 1] = answer
  topic_of[#answers] = topic
end

-- Forget the oldest fields of a hash whose values begin with their offsets, once it has twice as many as it must have.
local function shrink(hash, size)
  if call('HLEN', hash) <= 2 * size + 16 then return end
  local all, offsets, by_offset = call('HGETALL', hash), {}, {}
  for i = 1, #all, 2 do
    local offset = unpack_bytes('<I8', all[i + 1])
    offsets[#offsets + 1] = offset
    by_offset[offset] = all[i]
  end
  table.sort(offsets)
  for i = 1, #offsets - size do call('HDEL', hash, by_offset[offsets[i]]) end
end

local function write_by_key(name, topic, spec)
  local hash = prefix .. 'h:' .. name
  if call('EXISTS', hash) == 0 then topic.floor = topic.before end
  for conflation, record in pairs(topic.records) do call('HSET', hash, conflation, record) end
  call('PEXPIRE', hash, spec.expires)
  shrink(hash, spec.history)
end

local function write_list(name, topic, spec)
  local list = prefix .. 'l:' .. name
  local length = call('RPUSH', list, unpack(topic.records))
  -- One more than may be missed: the message that a client has last, if it has missed as many.
  if length > spec.history + 1 then
    length = spec.history + 1
    call('LTRIM', list, -length, -1)
  end
  call('PEXPIRE', list, spec.expires)
end

local function write_keys(name, topic, spec)
  local hash = prefix .. 'k:' .. name
  for key, stored in pairs(topic.keys) do call('HSET', hash, key, stored) end
  call('PEXPIRE', hash, spec.expires)
  -- As many as the list has.
  shrink(hash, spec.history + 1)
end

local function write(name, topic)
  local spec = topic.spec
  local kind = spec and spec.kind or 0
  if topic.is_new or kind ~= topic.kind then forget(name) end
  topic.kind = kind
  if spec then
    if spec.by_key then write_by_key(name, topic, spec) else write_list(name, topic, spec) end
    if topic.keys then write_keys(name, topic, spec) end
  end
  local expires = spec and math.max(spec.expires, KEEP_HISTORY) or KEEP_OFFSET
  call('SET', prefix .. 'o:' .. name, counter(topic), 'PX', expires)
end

for _, name in ipairs(names) do
  local topic = topics[name]
  if topic.is_changed then
    local is_written, why = pcall(write, name, topic)
    if not is_written then topic.failure = type(why) == 'table' and why or redis.error_reply(why) end
  end
end
for i = 1, #told, 3 do
  if not told[i].failure then call('PUBLISH', told[i + 1], told[i + 2]) end
end
for i, topic in ipairs(topic_of) do answers[i] = topic.failure or answers[i] end
return answers
"""
)

# ARGV: the prefix; the bytes of records after which the answer ends; then of each topic its name, its spec, and the
# offset and nonce of a message; an offset of -1 is the beginning of the window, and an empty one nothing. Answers for
# each: 1 if all that followed is there and 0 if not, or 2 if more of it has to be asked for; the last offset (0 of an
# unknown topic without history) and nonce; then the records that followed.
READ: Final = _script(
    _COMMON
    + """
local size, limit = 0, tonumber(ARGV[2])

local function is_full(answer, record)
  answer[#answer + 1] = record
  size = size + #record
  return size >= limit
end

local function newest_by_key(name, topic, spec, since, answer)
  local found, newest = {}, 0
  for _, record in ipairs(call('HVALS', prefix .. 'h:' .. name)) do
    local offset, time = unpack_bytes('<I8d', record)
    newest = math.max(newest, offset)
    if offset > since and time * 1000 >= now / 1000 - spec.ttl then found[#found + 1] = {offset, record} end
  end
  -- Lost.
  if since >= 0 and newest ~= topic.last then return 0 end
  table.sort(found, function(one, other) return one[1] < other[1] end)
  for i = math.max(1, #found - spec.history + 1), #found do
    if is_full(answer, found[i][2]) and i < #found then return 2 end
  end
  return 1
end

local function after(name, topic, spec, since, nonce, answer)
  if since == topic.last then return nonce == topic.nonce and 1 or 0 end
  if since > topic.last then return 0 end
  if spec.by_key then
    if since >= 0 and since < topic.floor then return 0 end
    return newest_by_key(name, topic, spec, since, answer)
  end
  local list = prefix .. 'l:' .. name
  local length = call('LLEN', list)
  local missed = since < 0 and math.min(length, spec.history) or topic.last - since
  if missed > length or missed > spec.history then return 0 end
  local oldest = now / 1000 - spec.ttl
  while missed > 0 do
    for _, record in ipairs(call('LRANGE', list, -missed, math.min(-1, 63 - missed))) do
      local offset, time = unpack_bytes('<I8d', record)
      missed = missed - 1
      -- A position has the nonce of the message before; or, as ``position_before``, of this one.
      local is_next = offset == since + 1 and sub(record, 17, 24) == epoch
      if since >= 0 and not (is_next and (sub(record, 25, 40) == nonce or sub(record, 41, 56) == nonce)) then
        return 0
      end
      if time * 1000 >= oldest then
        if is_full(answer, record) and missed > 0 then return 2 end
      elseif since >= 0 then
        return 0
      end
      if since >= 0 then since, nonce = offset, sub(record, 41, 56) end
    end
  end
  return 1
end

local answers = {}
for i = 3, #ARGV, 4 do
  local name, spec, since, nonce = ARGV[i], parse(ARGV[i + 1]), tonumber(ARGV[i + 2]), ARGV[i + 3]
  local topic = open(name)
  local answer = {since and 0 or 1, topic.last, topic.nonce}
  if topic.is_new then
    if spec.history == 0 then
      answer[2] = 0
    else
      -- So that a position of the empty topic is one as any other.
      local kept = redis.pcall('SET', prefix .. 'o:' .. name, counter(topic), 'PX', KEEP_HISTORY)
      if kept.err then answer[2] = 0 else forget(name) end
      if since and since < 0 then answer[1] = 1 end
    end
  elseif size >= limit then
    answer[1] = 2
  elseif since and (since >= 0 or topic.kind == spec.kind or topic.last == topic.begin) then
    answer[1] = after(name, topic, spec, since, nonce, answer)
    if answer[1] == 0 then answer = {0, topic.last, topic.nonce} end
  end
  answers[#answers + 1] = answer
end
return answers
"""
)

# ARGV: the prefix, a new epoch, whether the server writes each message to disk first, what it is, and what it was
# before it was promoted. Answers with the epoch. Another server, or the same one started again or with data of another
# one, may lack the last messages unless both wrote them first.
#
# A server that takes no writes can be subscribed to, unless it is a replica. If its memory is full, it refuses SET only
# before the first write of a script.
OPEN: Final = _script("""
local key = ARGV[1] .. 'e'
local before = redis.call('GET', key) or ''
local is_durable, server = string.sub(before, 9, 9), string.sub(before, 10)
local epoch = ARGV[2]
if server == ARGV[4] or server == ARGV[5] or is_durable .. ARGV[3] == '11' then epoch = string.sub(before, 1, 8) end
local now = epoch .. ARGV[3] .. ARGV[4]
local deleted = redis.pcall('DEL', key)
if type(deleted) == 'number' then
  redis.call('SET', key, now)
elseif now ~= before or string.find(deleted.err, 'READONLY') then
  return deleted
end
return epoch
""")

# ARGV: the key, who claims it, and for how many milliseconds. Answers with 1 if it is the claimant's.
CLAIM: Final = _script("""
local owner = redis.call('GET', ARGV[1])
if owner then return owner == ARGV[2] and 1 or 0 end
redis.call('SET', ARGV[1], ARGV[2], 'PX', ARGV[3])
return 1
""")
