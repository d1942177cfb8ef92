-- A sliding minute, exact: what was counted stays until all of its bucket is more than 60 s old, so that no 60 s, wherever
-- they begin, hold more than a limit. A window is one hash: a bucket of half a second → what was counted in it, and
-- `first` and `last` bucket and the `sum` of all.
local BUCKET_MS, BUCKETS, WINDOW_KEPT_MS = 500, 121, 120000

-- A window as it is now, what is older left out. Reads only.
local function window_of(key)
  local bucket = math.floor(now / BUCKET_MS)
  local window = {key = key, bucket = bucket, first = bucket, last = bucket, sum = 0, old = {}}
  local found = call('HMGET', key, 'first', 'last', 'sum')
  if not found[3] then return window end
  local first, last = tonumber(found[1]), tonumber(found[2])
  -- All of it is older; or the clock was set back by more than a window, and it would not age for as long.
  if bucket - last >= BUCKETS or first - bucket >= BUCKETS then
    window.is_over = true
    return window
  end
  window.first, window.last, window.sum = first, math.max(last, bucket), tonumber(found[3])
  for old = first, bucket - BUCKETS do window.old[#window.old + 1] = int(old) end
  if #window.old > 0 then
    window.first = bucket - BUCKETS + 1
    for _, amount in ipairs(call('HMGET', key, unpack(window.old))) do
      if amount then window.sum = window.sum - tonumber(amount) end
    end
  end
  return window
end

local function count_in(window, amount)
  local key = window.key
  if window.is_over then
    call('DEL', key)
  elseif #window.old > 0 then
    call('HDEL', key, unpack(window.old))
  end
  window.first = math.min(window.first, window.bucket)
  window.sum = window.sum + amount
  call('HINCRBY', key, int(window.bucket), int(amount))
  call('HSET', key, 'first', int(window.first), 'last', int(window.last), 'sum', int(window.sum))
  call('PEXPIRE', key, WINDOW_KEPT_MS)
end

-- ms until `need` more fit the limit, if nothing else comes.
local function room_ms(window, need, limit)
  local left = window.sum + need - limit
  if left <= 0 then return 0 end
  local buckets = {}
  for bucket = window.first, window.last do buckets[#buckets + 1] = int(bucket) end
  local leaves = window.last
  for at, amount in ipairs(call('HMGET', window.key, unpack(buckets))) do
    left = left - tonumber(amount or 0)
    if left <= 0 then
      leaves = window.first + at - 1
      break
    end
  end
  return math.max(1, (leaves + BUCKETS) * BUCKET_MS - now)
end

-- ms until all of the limit is there again, if nothing more comes.
local function whole_ms(window)
  return window.sum > 0 and math.max(1, (window.last + BUCKETS) * BUCKET_MS - now) or 0
end
