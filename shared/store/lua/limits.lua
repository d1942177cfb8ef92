-- The limits of a tenant and of an API key, as SUBMIT and START_BATCH hold callers to them: all are looked at before
-- anything is written, so that what is refused was never counted.
local QUEUED_AGAIN_MS, KEY_LIMITS_KEPT_MS = 5000, 45 * 86400000

-- Both in the order of LIMITS (shared/limits.py): those of the tenant are read here, so that a change holds at once.
-- first: where those of the key stand in ARGV. key: its id or ''. Returns {{owner, limits}, ...}.
local function owners_of(tenant, key, first)
  local limits = call('HMGET', key_tenant(tenant), 'requests_per_minute', 'tokens_per_minute', 'running_jobs', 'queued_jobs',
    'nano_usd_per_day', 'nano_usd_per_month')
  local owners = {{'tenant:' .. tenant, limits}}
  if key ~= '' then owners[2] = {'key:' .. key, {unpack(ARGV, first, first + 5)}} end
  return owners
end

-- How the limits stand for `jobs` more, and `tokens`. with_pace: the two windows too. Returns
-- {code or nil: why not, wait_ms, windows, told: what is limited → {limit, left, need, ms until it is whole or -1}}
local function look_at_limits(owners, jobs, tokens, with_pace)
  local found = {wait_ms = 0, told = {}, windows = {}}
  local function hold_back(code, wait_ms)
    if wait_ms > found.wait_ms then found.code, found.wait_ms = code, wait_ms end
  end
  local function tell(measured, limit, left, need, whole) -- the key's or the tenant's, whichever leaves less
    local told = found.told[measured]
    if not told or left < told[2] then found.told[measured] = {limit, left, need, whole} end
  end
  local function look_at(measured, key, limit, need)
    local window = window_of(key)
    if need > limit then found.never = measured end
    hold_back('rate_limited', room_ms(window, need, limit))
    tell(measured, limit, limit - window.sum, need, whole_ms(window))
    found.windows[#found.windows + 1] = {window, need}
  end
  for at, each in ipairs(owners) do
    local owner, limits = each[1], each[2]
    local requests, a_minute, queued = tonumber(limits[1] or 0), tonumber(limits[2] or 0), tonumber(limits[4] or 0)
    local a_day, a_month = tonumber(limits[5] or 0), tonumber(limits[6] or 0)
    if with_pace and requests > 0 then look_at('requests', key_requests(owner), requests, 1) end
    if with_pace and a_minute > 0 and tokens > 0 then
      look_at('tokens', key_tokens(owner), a_minute, tokens)
      found.reserved = found.reserved or {'0', '0'}
      found.reserved[at] = int(tokens)
    end
    if queued > 0 then
      local waiting = tonumber(call('HGET', key_queued_jobs(), owner) or 0)
      if jobs > queued then found.never = 'queued_jobs' end
      if waiting + jobs > queued then hold_back('too_many_queued', QUEUED_AGAIN_MS) end
      tell('queued_jobs', queued, queued - waiting, jobs, -1)
    end
    if a_day > 0 and spent_by(owner, day_name()) >= a_day then hold_back('budget_exceeded', ms_to_next_day()) end
    if a_month > 0 and spent_by(owner, month_name()) >= a_month then hold_back('budget_exceeded', ms_to_next_month()) end
  end
  return found
end

-- As an answer carries it: measured, limit, remaining, ms until it is whole or -1, ...
local function told_of(found)
  local flat = {}
  for _, measured in ipairs({'requests', 'tokens', 'queued_jobs'}) do
    local told = found.told[measured]
    if told then
      local limit, left, need, whole = unpack(told)
      if not found.code then
        left = left - need
        if whole >= 0 then whole = BUCKETS * BUCKET_MS end
      end
      flat[#flat + 1] = measured
      for _, number in ipairs({limit, math.max(0, left), whole}) do flat[#flat + 1] = int(number) end
    end
  end
  return flat
end

-- Why a submit is refused, or nil.
local function refusal_of(found)
  if found.never then return {'never', found.never, int(found.told[found.never][1])} end
  if found.code then return {'limited', found.code, int(found.wait_ms), told_of(found)} end
end

-- What was looked at is admitted. CLAIM knows the limits of a key as they were heard here last.
local function count_in_limits(found, owners, key)
  for _, each in ipairs(found.windows) do count_in(each[1], each[2]) end
  if key ~= '' then
    local limits = owners[2][2]
    local of_claims = limits[3] .. ' ' .. limits[5] .. ' ' .. limits[6]
    if of_claims == '0 0 0' then
      call('DEL', key_key_limits(key))
    else
      call('SET', key_key_limits(key), of_claims, 'PX', int(KEY_LIMITS_KEPT_MS))
    end
  end
end
