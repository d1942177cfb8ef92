-- A sliding minute, exact: what was counted stays until all of its bucket is more than 60 s old, so that no 60 s, wherever
-- they begin, hold more than a limit. A window is one hash, so that a look is one command and a count another: a bucket of
-- half a second → requests and tokens that were counted in it, and `head`: first and last bucket, and the sums of both.
local BUCKET_MS, BUCKETS, WINDOW_KEPT_MS = 500, 121, 120000

local function two_of(amounts)
  local requests, tokens = string.match(amounts or '0 0', '^(%S+) (%S+)$')
  return tonumber(requests), tonumber(tokens)
end

-- A window as it is now, what is older left out. Reads only.
local function window_of(key)
  local bucket = math.floor(now / BUCKET_MS)
  local window = {key = key, bucket = bucket, first = bucket, last = bucket, requests = 0, tokens = 0, old = {}}
  local found = call('HMGET', key, 'head', int(bucket))
  if not found[1] then return window end
  local first, last, requests, tokens = string.match(found[1], '^(%S+) (%S+) (%S+) (%S+)$')
  first, last = tonumber(first), tonumber(last)
  -- All of it is older; or the clock was set back by more than a window, and it would not age for as long.
  if bucket - last >= BUCKETS or first - bucket >= BUCKETS then
    for old = first, last do window.old[#window.old + 1] = int(old) end
    return window
  end
  window.here = found[2]
  window.first, window.last = first, math.max(last, bucket)
  window.requests, window.tokens = tonumber(requests), tonumber(tokens)
  for old = first, bucket - BUCKETS do window.old[#window.old + 1] = int(old) end
  if #window.old > 0 then
    window.first = bucket - BUCKETS + 1
    for _, amounts in ipairs(call('HMGET', key, unpack(window.old))) do
      local old_requests, old_tokens = two_of(amounts)
      window.requests, window.tokens = window.requests - old_requests, window.tokens - old_tokens
    end
  end
  return window
end

local function count_in(window, requests, tokens)
  local key, here_requests, here_tokens = window.key, two_of(window.here)
  window.first = math.min(window.first, window.bucket)
  window.requests, window.tokens = window.requests + requests, window.tokens + tokens
  call('HSET', key,
    'head', string.format('%.0f %.0f %.0f %.0f', window.first, window.last, window.requests, window.tokens),
    int(window.bucket), string.format('%.0f %.0f', here_requests + requests, here_tokens + tokens))
  if #window.old > 0 then call('HDEL', key, unpack(window.old)) end
  if not window.here then call('PEXPIRE', key, WINDOW_KEPT_MS) end -- once a bucket: it is kept for two windows
end

-- ms until `need` more fit the limit, if nothing else comes. measured: 'requests' or 'tokens'.
local function room_ms(window, measured, need, limit)
  local left = window[measured] + need - limit
  if left <= 0 then return 0 end
  local buckets = {}
  for bucket = window.first, window.last do buckets[#buckets + 1] = int(bucket) end
  local leaves = window.last
  for at, amounts in ipairs(call('HMGET', window.key, unpack(buckets))) do
    local requests, tokens = two_of(amounts)
    left = left - (measured == 'requests' and requests or tokens)
    if left <= 0 then
      leaves = window.first + at - 1
      break
    end
  end
  return math.max(1, (leaves + BUCKETS) * BUCKET_MS - now)
end

-- ms until all of the limit is there again, if nothing more comes.
local function whole_ms(window, measured)
  return window[measured] > 0 and math.max(1, (window.last + BUCKETS) * BUCKET_MS - now) or 0
end
