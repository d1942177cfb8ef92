-- uses: now
-- An exact sliding minute: what was counted stays until all of its bucket is older than a minute, so that no minute,
-- wherever it begins, holds more than a limit. A window is one hash. A field for each bucket of half a second holds the
-- amounts that were counted in it, separated by blanks. One or two more fields, which `kind` names, hold the first
-- bucket and the sums over all buckets.
local BUCKET_MS = 500

-- The kind for submits: requests and tokens. One field, `head`, holds the first and the last bucket and the sums.
local REQUESTS = 1
local TOKENS = 2
-- A function, so that a script that may need it pays for it only when it does.
local pace_of_all = false
local function pace()
  pace_of_all = pace_of_all or {buckets = WINDOW_MS / BUCKET_MS + 1, kept_ms = 120000, form = '%.0f %.0f',
    head = {'head'}, has_last = true}
  return pace_of_all
end

-- The two or four numbers in a text. `+ 0` makes a number of a text, and costs less than tonumber().
local function numbers_in(text)
  local a, b, c, d = string.match(text, '^(%S+) (%S+) ?(%S*) ?(%S*)$')
  if c == '' then return {a + 0, b + 0} end
  return {a + 0, b + 0, c + 0, d + 0}
end

local function add(sums, amounts, sign)
  for at = 1, #amounts do sums[at] = sums[at] + sign * amounts[at] end
end

-- A window as it is now, without the buckets that are too old. Reads only.
local function window_of(kind, key)
  local bucket = math.floor(now / BUCKET_MS)
  local window = {kind = kind, key = key, bucket = bucket, field = int(bucket), first = bucket, last = bucket, old = {}}
  window.sums = {0, 0, 0, 0} -- of a kind with two amounts, string.format passes over the others
  local found = call('HMGET', key, window.field, unpack(kind.head))
  if not found[2] then return window end
  local head = numbers_in(found[#found])
  local first, last = head[1], head[2]
  if not kind.has_last then -- every count drops what is older: no bucket is a window's length after the first
    first, last = tonumber(found[2]), found[2] + kind.buckets - 1
  end
  -- All buckets are too old. Or the clock was set back by more than a window, and they would not age for that long.
  if bucket - last >= kind.buckets or first - bucket >= kind.buckets then
    for old = first, last do window.old[#window.old + 1] = int(old) end
    return window
  end
  window.here = found[1]
  window.first = first
  if kind.has_last then window.last = math.max(last, bucket) end
  window.sums = kind.has_last and {head[3], head[4]} or head
  for old = first, bucket - kind.buckets do window.old[#window.old + 1] = int(old) end
  if #window.old > 0 then
    window.first = bucket - kind.buckets + 1
    for _, amounts in ipairs(call('HMGET', key, unpack(window.old))) do
      if amounts then add(window.sums, numbers_in(amounts), -1) end
    end
  end
  return window
end

local function count_in(window, amounts)
  local key, kind = window.key, window.kind
  local counted = window.here and numbers_in(window.here) or {0, 0, 0, 0}
  add(counted, amounts, 1)
  add(window.sums, amounts, 1)
  window.first = math.min(window.first, window.bucket)
  local here = string.format(kind.form, unpack(counted))
  if kind.has_last then
    local head = string.format('%.0f %.0f %.0f %.0f', window.first, window.last, window.sums[1], window.sums[2])
    call('HSET', key, 'head', head, window.field, here)
  else
    call('HSET', key, 'first', int(window.first), 'sums', string.format(kind.form, unpack(window.sums)), window.field,
      here)
  end
  if #window.old > 0 then call('HDEL', key, unpack(window.old)) end
  if not window.here then call('PEXPIRE', key, kind.kept_ms) end -- once a bucket
end

-- Corrects what an earlier count added. A bucket that was dropped since is not created again.
local function correct(kind, key, bucket, amounts)
  local field = kind.head[#kind.head]
  local found = call('HMGET', key, bucket, field)
  if not found[1] or not found[2] then return end
  local before, sums = '', found[2]
  if kind.has_last then before, sums = string.match(sums, '^(%S+ %S+ )(.*)$') end
  local counted, total = numbers_in(found[1]), numbers_in(sums)
  add(counted, amounts, 1)
  add(total, amounts, 1)
  call('HSET', key, bucket, string.format(kind.form, unpack(counted)),
    field, before .. string.format(kind.form, unpack(total)))
end

-- ms until `need` more fit within the limit for the amount at `place`, if nothing else is counted; 0: now.
local function room_ms(window, place, need, limit)
  local left = window.sums[place] + need - limit
  if left <= 0 then return 0 end
  local buckets = {}
  for bucket = window.first, window.last do buckets[#buckets + 1] = int(bucket) end
  local leaves = window.last
  for at, amounts in ipairs(call('HMGET', window.key, unpack(buckets))) do
    if amounts then left = left - numbers_in(amounts)[place] end
    if left <= 0 then
      leaves = window.first + at - 1
      break
    end
  end
  return math.max(1, (leaves + window.kind.buckets) * BUCKET_MS - now)
end

-- ms until the whole limit is free again, if nothing more is counted.
local function whole_ms(window, place)
  return window.sums[place] > 0 and math.max(1, (window.last + window.kind.buckets) * BUCKET_MS - now) or 0
end
