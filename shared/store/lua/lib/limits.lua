-- uses: now, held, bookkeeping, window, spend
-- The limits of a tenant, of an API key and of an end user, which submits must keep. All limits are checked before
-- anything is written, so that nothing of a refused submit is counted.
local QUEUED_AGAIN_MS = 5000
local KEY_LIMITS_KEPT_MS = 45 * DAY_MS

-- The tenant with its limits and, if there is one, the API key with its own. The tenant's are read here, so that a
-- change holds at once. key: its id or ''. key_limits: in the order of LIMITS (shared/limits.py), separated by blanks.
-- user: an end user, as in lib/owners.lua; '' or nil for none.
-- Returns {{name, requests, tokens, running, queued, a_day, a_month}, ...}, where 0 is no limit; the first, the tenant,
-- has `bytes` too; `key` is the API key's.
local function owners_of(tenant, key, key_limits, user)
  local owners = {}
  local function add_owner(name, limits)
    for i = 1, 6 do limits[i] = tonumber(limits[i] or 0) end
    owners[#owners + 1] = {name = name, requests = limits[1], tokens = limits[2], running = limits[3],
      queued = limits[4], a_day = limits[5], a_month = limits[6], bytes = tonumber(limits[7] or 0)}
  end
  add_owner('tenant:' .. tenant, call('HMGET', key_tenant(tenant), 'requests_per_minute', 'tokens_per_minute',
    'running_jobs', 'queued_jobs', 'nano_usd_per_day', 'nano_usd_per_month', 'waiting_bytes'))
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
  local names, keys, has_queued = {}, {}, false
  for at, owner in ipairs(owners) do
    names[at] = owner.name
    has_queued = has_queued or owner.queued > 0
    if owner.a_day > 0 or owner.a_month > 0 then
      local day = day_name()
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
-- Returns {code: why it is refused now, or nil, wait_ms, never: why it is refused in any case, or nil, windows,
-- states: what is limited → {limit, left, need, ms until the whole limit is free or -1}}
local function look_at_limits(owners, key, jobs, tokens, max_tokens, with_pace)
  local found = {wait_ms = 0, states = {}, windows = {}}
  local function hold_back(code, wait_ms)
    if wait_ms > found.wait_ms then found.code, found.wait_ms = code, wait_ms end
  end
  local function note(measured, limit, left, need, whole) -- the key's or the tenant's, whichever leaves less
    local state = found.states[measured]
    if not state or left < state[2] then found.states[measured] = {limit, left, need, whole} end
  end
  local function never(measured, limit) -- the smallest such limit: a client that heeds it gets through
    if not found.never or limit < found.never[2] then found.never = {measured, limit} end
  end
  local function look_at(measured, place, window, limit, need)
    hold_back('rate_limited', room_ms(window, place, need, limit))
    note(measured, limit, limit - window.sums[place], need, whole_ms(window, place))
  end
  local queued, spent
  queued, spent, found.key_limits = read_stored(owners, key)
  for at, owner in ipairs(owners) do
    local has_tokens = owner.tokens > 0 and tokens > 0
    if with_pace and (owner.requests > 0 or has_tokens) then
      local window = window_of(pace(), key_pace(owner.name))
      if owner.requests > 0 then look_at('requests', REQUESTS, window, owner.requests, 1) end
      local reserved = has_tokens and math.min(tokens, owner.tokens) or 0
      if has_tokens then
        if max_tokens > owner.tokens then never('tokens', owner.tokens) end
        look_at('tokens', TOKENS, window, owner.tokens, reserved)
        found.reserved = found.reserved or {'0', '0'}
        found.reserved[at] = int(reserved)
      end
      found.windows[#found.windows + 1] = {window, reserved}
    end
    if owner.queued > 0 then
      local waiting = tonumber(queued[at] or 0)
      if jobs > owner.queued then never('queued_jobs', owner.queued) end
      if waiting + jobs > owner.queued then hold_back('too_many_queued', QUEUED_AGAIN_MS) end
      note('queued_jobs', owner.queued, owner.queued - waiting, jobs, -1)
    end
    if owner.a_day > 0 and spent[at][1] >= owner.a_day then hold_back('budget_exceeded', ms_to_next_day()) end
    if owner.a_month > 0 and spent[at][2] >= owner.a_month then hold_back('budget_exceeded', ms_to_next_month()) end
  end
  return found
end

-- The states as a reply carries them: measured, limit, remaining, ms until the whole limit is free or -1, ...
local function states_of(found)
  local flat = {}
  for _, measured in ipairs({'requests', 'tokens', 'queued_jobs'}) do
    local state = found.states[measured]
    if state then
      local limit, left, need, whole = unpack(state)
      if not found.code then
        left = left - need
        if whole >= 0 then whole = pace().buckets * BUCKET_MS end
      end
      flat[#flat + 1] = measured
      for _, number in ipairs({limit, math.max(0, left), whole}) do flat[#flat + 1] = int(number) end
    end
  end
  return flat
end

-- The reply to a submit that is refused, or nil.
local function refusal_of(found)
  if found.never then return {'never', found.never[1], int(found.never[2])} end
  if found.code then return {'limited', found.code, int(found.wait_ms), states_of(found)} end
end

-- The submit goes ahead, and may wait until until_ms: counts it in its windows. CLAIM reads the limits of a key as its
-- last submit stored them. The day is part of what is stored, so that it is written, and its TTL renewed, once a day.
local function count_in_limits(found, owners, until_ms)
  for _, each in ipairs(found.windows) do count_in(each[1], {1, each[2]}) end
  local key = owners.key
  if not key or (not found.key_limits and key.running + key.a_day + key.a_month == 0) then return end
  local of_claims = string.format('%.0f %.0f %.0f %.0f', key.running, key.a_day, key.a_month, today)
  local kept_ms = math.max(KEY_LIMITS_KEPT_MS, until_ms - now)
  if of_claims ~= found.key_limits or kept_ms > KEY_LIMITS_KEPT_MS then
    local record = key_key_limits(string.sub(key.name, 5))
    call('SET', record, of_claims, 'PX', int(math.max(kept_ms, call('PTTL', record))))
    look_at_parked(key.name)
  end
end

-- The tenant holds `bytes` more; if it may not, returns why. default: the limit of a tenant without one of its own; 0
-- for none. stored: bytes that the same batch holds already. The only check that writes first, and takes it back if it
-- refuses: that is one command instead of two.
local function hold_or_refuse(owners, tenant, bytes, default, stored)
  local most = owners[1].bytes > 0 and owners[1].bytes or tonumber(default)
  if most > 0 and bytes + (stored or 0) > most then return {'never', 'waiting_bytes', int(most)} end
  if hold_bytes(tenant, bytes) > most and most > 0 then
    hold_bytes(tenant, -bytes)
    return {'limited', 'too_many_bytes', int(QUEUED_AGAIN_MS), {}, int(most)}
  end
end
