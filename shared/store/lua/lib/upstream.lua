-- uses: now, window
-- The state of the upstreams' routes.

-- The longest pause of an open circuit between two probes.
local LONGEST_COOLDOWN_MS = 5000

-- Why a route may not be called now: a Retry-After, or its circuit is open. After each pause an open circuit lets one
-- call through, its probe.
-- Returns ms to wait (0: it may be called, or probed), why, since when its circuit is open (nil: closed).
local function gate_of(route)
  local found = call('HMGET', key_route(route), 'shut_ms', 'reason', 'open_ms', 'probe')
  local shut = math.max(0, tonumber(found[1] or 0) - now)
  if shut == 0 and found[4] then
    -- A probe is under way: the route stays shut until that call is closed, or its worker is dead.
    shut = math.max(0, tonumber(call('ZSCORE', key_calls(route), found[4]) or 0) - now)
  end
  return shut, found[2] or '', found[3] and tonumber(found[3])
end

-- How the route's last calls ended, the newest last: F for trouble, S for success. Ignored a minute after the last one.
local function outcomes_of(route)
  local found = call('HMGET', key_route(route), 'outcomes', 'outcome_ms')
  if tonumber(found[2] or 0) < now - 60000 then return '' end
  return found[1] or ''
end

-- The calls, retries, input tokens and output tokens of a route in the last 61 s: a call may reach the upstream up to a
-- second late, and no sliding minute there may hold more than the limit.
local CALLS = 1
local RETRIES = 2
local INPUT = 3
local OUTPUT = 4
local FOUR = '%.0f %.0f %.0f %.0f'
local ASKED = {buckets = WINDOW_MS / BUCKET_MS + 2, kept_ms = 3600000, form = FOUR, head = {'first', 'sums'}}

-- The limits that hold: those of the settings ('' for none), else those that the upstream reported.
local function limits_of(route, requests, input, output)
  local learned = call('HMGET', key_route(route), 'limit_requests', 'limit_input', 'limit_output')
  return tonumber(requests) or tonumber(learned[1] or ''), tonumber(input) or tonumber(learned[2] or ''),
    tonumber(output) or tonumber(learned[3] or '')
end

local function running_of(route) return call('ZCOUNT', key_calls(route), int(now), '+inf') end
