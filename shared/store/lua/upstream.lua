-- The head of the scripts that keep the upstreams' state. KEYS[1] is the prefix of what is no shard's.
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Lua's own conversion keeps 14 digits and may write an exponent: every number that is stored goes through here.
local function int(number) return string.format('%.0f', number) end

-- The longest pause of an open circuit between two probes; and as in worker/retry.py.
local LONGEST_COOLDOWN_MS, LONGEST_WAIT_IN_SLOT_MS = 5000, 2000

-- Why a route may not be called now: a Retry-After, or its circuit. Behind its time an open circuit lets one call through.
-- Returns ms to wait (0: open, or ready for its probe), why, since when its circuit is open (nil: closed).
local function gate_of(route)
  local found = call('HMGET', key_route(route), 'shut_ms', 'reason', 'open_ms', 'probe')
  local shut = math.max(0, tonumber(found[1] or 0) - now)
  if shut == 0 and found[4] then
    -- The probe holds the gate until it is settled, or its worker is dead.
    shut = math.max(0, tonumber(call('ZSCORE', key_calls(route), found[4]) or 0) - now)
  end
  return shut, found[2] or '', found[3] and tonumber(found[3])
end

-- How its last calls ended, the newest last: F for trouble, S. What is older than a minute says nothing any more.
local function outcomes_of(route)
  local found = call('HMGET', key_route(route), 'outcomes', 'outcome_ms')
  if tonumber(found[2] or 0) < now - 60000 then return '' end
  return found[1] or ''
end

-- What was asked of a route in the last minute, in buckets of half a second: calls, retries, input tokens, output tokens.
-- 61 s, so that no sliding minute can hold more than the limit, be a call a second late at the upstream.
local BUCKET_MS, BUCKETS = 500, 122

local function amounts(text)
  if not text then return {0, 0, 0, 0} end
  local a, b, c, d = string.match(text, '^(%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+)$')
  return {tonumber(a), tonumber(b), tonumber(c), tonumber(d)}
end

local function add(sums, more, sign)
  for i = 1, 4 do sums[i] = sums[i] + sign * more[i] end
end

local function text_of(sums) return int(sums[1]) .. ' ' .. int(sums[2]) .. ' ' .. int(sums[3]) .. ' ' .. int(sums[4]) end

-- {sums, first bucket, this bucket}, what is older than the window left out.
local function window_of(route)
  local key = key_window(route)
  local bucket = math.floor(now / BUCKET_MS)
  local found = call('HMGET', key, 'first', 'sums')
  local first, sums = tonumber(found[1] or bucket), amounts(found[2])
  -- Nobody has looked for so long that all of it is older; or the clock was set back, and it would never age.
  if bucket - first >= 2 * BUCKETS or first - bucket >= BUCKETS then
    call('DEL', key)
    return {{0, 0, 0, 0}, bucket, bucket}
  end
  first = math.min(first, bucket)
  if first <= bucket - BUCKETS then
    while first <= bucket - BUCKETS do
      local old = call('HGET', key, int(first))
      if old then
        add(sums, amounts(old), -1)
        call('HDEL', key, int(first))
      end
      first = first + 1
    end
    call('HSET', key, 'first', int(first), 'sums', text_of(sums))
  end
  return {sums, first, bucket}
end

-- Adds to a bucket and to the sums. A bucket that has left the window is not made again.
local function count(route, window, bucket, more)
  if bucket < window[2] then return end
  local key = key_window(route)
  local there = amounts(call('HGET', key, int(bucket)))
  add(there, more, 1)
  add(window[1], more, 1)
  call('HSET', key, 'first', int(window[2]), 'sums', text_of(window[1]), int(bucket), text_of(there))
end

-- How many ms until `need` more of the i-th amount fit the limit.
local function room_ms(route, window, i, need, limit)
  local left = window[1][i] + need - limit
  local bucket = window[2]
  while left > 0 and bucket <= window[3] do
    local there = call('HGET', key_window(route), int(bucket))
    if there then left = left - amounts(there)[i] end
    bucket = bucket + 1
  end
  return math.max(1, (bucket - 1 + BUCKETS) * BUCKET_MS - now)
end

-- The limits that hold: those of the settings ('' for none), else what the upstream said of itself.
local function limits_of(route, requests, input, output)
  local learned = call('HMGET', key_route(route), 'limit_requests', 'limit_input', 'limit_output')
  return tonumber(requests) or tonumber(learned[1] or ''), tonumber(input) or tonumber(learned[2] or ''),
    tonumber(output) or tonumber(learned[3] or '')
end

local function running_of(route) return call('ZCOUNT', key_calls(route), int(now), '+inf') end
