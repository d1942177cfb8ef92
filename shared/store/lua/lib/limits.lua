-- uses: now, held, bookkeeping, window, spend
-- The limits of a tenant, of an API key and of an end user, which submits must keep. All limits are checked before
-- anything is written, so that nothing of a refused submit is counted.
local QUEUED_AGAIN_MS = 5000
local KEY_LIMITS_KEPT_MS = 45 * DAY_MS

-- The tenant with its limits and, if there is one, the API key with its own. The tenant's are read here, so that a
-- change holds at once. key: its id or ''. key_limits: in the order of LIMITS (shared/limits.py), separated by blanks.
-- user: an end user, as in lib/owners.lua; '' or nil for none.
-- Returns {{name, requests, tokens, running, queued, a_day, a_month}, ...}, where 0 is no limit; the first, the tenant,
-- has `bytes` too, and `is_erasing` while the tenant is being erased; `key` is the API key's.
local function owners_of(tenant, key, key_limits, user)
  local owners = {}
  local function add_owner(name, limits)
    for i = 1, 6 do limits[i] = tonumber(limits[i] or 0) end
    owners[#owners + 1] = {name = name, requests = limits[1], tokens = limits[2], running = limits[3],
      queued = limits[4], a_day = limits[5], a_month = limits[6], bytes = tonumber(limits[7] or 0),
      is_erasing = limits[8]}
  end
  add_owner('tenant:' .. tenant, call('HMGET', key_tenant(tenant), 'requests_per_minute', 'tokens_per_minute',
    'running_jobs', 'queued_jobs', 'nano_usd_per_day', 'nano_usd_per_month', 'waiting_bytes', 'erasing_ms'))
  if key ~= '' then add_owner('key:' .. key, {string.match(key_limits, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')}) end
  owners.key = owners[2]
  if user and user ~= '' then
    add_owner('user:' .. user, {0, 0, 0, 0, unpack(call('HMGET', key_tenant(tenant), 'end_user_nano_usd_per_day',
      'end_user_nano_usd_per_month'))})
  end
  return owners
end

-- What is stored for these owners, in two reads: how many of their jobs wait, what they have spent, and the limits of
-- the key as CLAIM knows them. Returns {[owner's index] = queued}, {[owner's index] = {in the day, in the month}},
-- limits or false
local function read_stored(owners, key)
  local names, keys, has_queued, day = {}, {}, false, nil
  for at, owner in ipairs(owners) do
    names[at] = owner.name
    has_queued = has_queued or owner.queued > 0
    if owner.a_day > 0 or owner.a_month > 0 then
      day = day or day_name()
      keys[#keys + 1], keys[#keys + 2] = key_spend(owner.name, day), key_spend(owner.name, string.sub(day, 1, 7))
    end
  end
  if key ~= '' then keys[#keys + 1] = key_key_limits(key) end
  local queued = has_queued and call('HMGET', key_queued_jobs(), unpack(names)) or {}
  local found, spent, next_found = #keys > 0 and call('MGET', unpack(keys)) or {}, {}, 1
  for at, owner in ipairs(owners) do
    if owner.a_day > 0 or owner.a_month > 0 then
      spent[at] = {tonumber(found[next_found] or 0), tonumber(found[next_found + 1] or 0)}
      next_found = next_found + 2
    end
  end
  return queued, spent, found[next_found]
end

-- The limits' states for `jobs` more jobs and `tokens` more tokens. `max_tokens` of the tokens are the caller's bound;
-- the rest is an estimate, many times too large for an image, so tokens beyond a whole minute's limit count as just
-- that limit. with_pace: look at the sliding windows too.
-- Returns {wait_ms: how long it is refused, reached: the limit that refuses it for so long, or nil: {of whom, name,
-- limit, used, need}, never: why it is refused in any case, or nil, windows, states: name → {limit, left, need, ms
-- until the whole limit is free or -1, its window in s}}
local function look_at_limits(owners, key, jobs, tokens, max_tokens, with_pace)
  local found = {wait_ms = 0, states = {}, windows = {}, is_erasing = owners[1].is_erasing}
  local function look_at(owner, name, limit, used, need, wait_ms, free_ms, window_s)
    if wait_ms > found.wait_ms then
      local of = string.match(owner.name, '^%a+')
      found.wait_ms, found.reached = wait_ms, {of == 'user' and 'end_user' or of, name, limit, used, need}
    end
    local state, left = found.states[name], limit - used -- the key's or the tenant's, whichever leaves less
    if not state or left < state[2] then found.states[name] = {limit, left, need, free_ms, window_s} end
  end
  local function never(name, limit) -- the smallest such limit: a client that heeds it gets through
    if not found.never or limit < found.never[2] then found.never = {name, limit} end
  end
  local queued, spent
  queued, spent, found.key_limits = read_stored(owners, key)
  for at, owner in ipairs(owners) do
    local has_tokens = owner.tokens > 0 and tokens > 0
    if with_pace and (owner.requests > 0 or has_tokens) then
      local window = window_of(pace(), key_pace(owner.name))
      if owner.requests > 0 then
        look_at(owner, 'requests_per_minute', owner.requests, window.sums[REQUESTS], 1,
          room_ms(window, REQUESTS, 1, owner.requests), whole_ms(window, REQUESTS), WINDOW_MS / 1000)
      end
      local reserved = has_tokens and math.min(tokens, owner.tokens) or 0
      if has_tokens then
        if max_tokens > owner.tokens then never('tokens_per_minute', owner.tokens) end
        look_at(owner, 'tokens_per_minute', owner.tokens, window.sums[TOKENS], reserved,
          room_ms(window, TOKENS, reserved, owner.tokens), whole_ms(window, TOKENS), WINDOW_MS / 1000)
        found.reserved = found.reserved or {'0', '0'}
        found.reserved[at] = int(reserved)
      end
      found.windows[#found.windows + 1] = {window, reserved}
    end
    if owner.queued > 0 then
      local waiting = tonumber(queued[at] or 0)
      if jobs > owner.queued then never('queued_jobs', owner.queued) end
      local wait_ms = waiting + jobs > owner.queued and QUEUED_AGAIN_MS or 0
      look_at(owner, 'queued_jobs', owner.queued, waiting, jobs, wait_ms, -1, 0)
    end
    if owner.a_day > 0 then
      local left_ms, in_day = ms_to_next_day(), spent[at][1]
      local wait_ms = in_day >= owner.a_day and left_ms or 0
      look_at(owner, 'usd_per_day', owner.a_day, in_day, 0, wait_ms, left_ms, DAY_MS / 1000)
    end
    if owner.a_month > 0 then
      local left_ms, month_s = month_now()
      local wait_ms = spent[at][2] >= owner.a_month and left_ms or 0
      look_at(owner, 'usd_per_month', owner.a_month, spent[at][2], 0, wait_ms, left_ms, month_s)
    end
  end
  return found
end

-- The states as a reply carries them: name, limit, remaining, ms until the whole limit is free or -1, its window in s,
-- ... Redis sends Lua's numbers as whole numbers.
local function states_of(found)
  local flat = {}
  if not next(found.states) then return flat end
  for _, name in ipairs({'requests_per_minute', 'tokens_per_minute', 'queued_jobs', 'usd_per_day', 'usd_per_month'}) do
    local state = found.states[name]
    if state then
      local limit, left, need, whole, window_s = unpack(state)
      if not found.reached then
        left = left - need
        if window_s == WINDOW_MS / 1000 then whole = pace().buckets * BUCKET_MS end
      end
      local at = #flat
      flat[at + 1], flat[at + 2], flat[at + 3] = name, limit, math.max(0, left)
      flat[at + 4], flat[at + 5] = whole, window_s
    end
  end
  return flat
end

-- The reply to a submit that is refused, or nil: {'never', name of the limit, limit} or {'limited', ms to wait, when it
-- would be accepted if nothing else came (ms; -1: time alone does not decide), states, whose limit, its name, limit,
-- used, need}
local function refusal_of(found)
  if found.is_erasing then return {'erasing'} end
  if found.never then return {'never', found.never[1], found.never[2]} end
  if found.reached then
    local opens_ms = found.reached[2] == 'queued_jobs' and -1 or now + found.wait_ms
    return {'limited', found.wait_ms, opens_ms, states_of(found), unpack(found.reached)}
  end
end

-- The limits of a key as CLAIM reads them.
local function of_claims(running, a_day, a_month)
  return string.format('%.0f %.0f %.0f %.0f', running, a_day, a_month, today)
end

-- The submit goes ahead, and may wait until until_ms: counts it in its windows. CLAIM reads the limits of a key as its
-- last submit stored them. The day is part of what is stored, so that it is written, and its TTL renewed, once a day.
local function count_in_limits(found, owners, until_ms)
  for _, each in ipairs(found.windows) do count_in(each[1], {1, each[2]}) end
  local key = owners.key
  if not key or (not found.key_limits and key.running + key.a_day + key.a_month == 0) then return end
  local stored = of_claims(key.running, key.a_day, key.a_month)
  local kept_ms = math.max(KEY_LIMITS_KEPT_MS, until_ms - now)
  if stored ~= found.key_limits or kept_ms > KEY_LIMITS_KEPT_MS then
    local record = key_key_limits(string.sub(key.name, 5))
    call('SET', record, stored, 'PX', int(math.max(kept_ms, call('PTTL', record))))
    look_at_parked(key.name)
  end
end

-- The tenant holds `bytes` more; if it may not, returns why. default: the limit of a tenant without one of its own; 0
-- for none. stored: bytes that the same batch holds already. The only check that writes first, and takes it back if it
-- refuses: that is one command instead of two.
local function hold_or_refuse(owners, tenant, bytes, default, stored)
  local most = owners[1].bytes > 0 and owners[1].bytes or tonumber(default)
  if most > 0 and bytes + (stored or 0) > most then return {'never', 'waiting_bytes', most} end
  local held = hold_bytes(tenant, bytes)
  if held > most and most > 0 then
    hold_bytes(tenant, -bytes)
    return {'limited', QUEUED_AGAIN_MS, -1, {}, 'tenant', 'waiting_bytes', most, held - bytes, bytes}
  end
end
