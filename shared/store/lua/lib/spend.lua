-- uses: now
-- What calls cost, summed for jobs, batches, tenants, API keys and end users. A cost is a number of nano-dollars, ''
-- for no call, or '?' for a model whose price is unknown.
local SPENT_DAY_KEPT_MS, SPENT_MONTH_KEPT_MS = 2 * DAY_MS, 62 * DAY_MS

-- The date (UTC) of a day since 1970. Redis's Lua has no os.date. (Howard Hinnant, "chrono-compatible low-level date
-- algorithms": eras of 400 years, which begin in March.)
local function date_of(days)
  local shifted = days + 719468
  local era = math.floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local leap_days = math.floor(of_era / 1460) - math.floor(of_era / 36524) + math.floor(of_era / 146096)
  local year = math.floor((of_era - leap_days) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local shifted_month = math.floor((5 * of_year + 2) / 153)
  local day = of_year - math.floor((153 * shifted_month + 2) / 5) + 1
  local month = shifted_month < 10 and shifted_month + 3 or shifted_month - 9
  return year + era * 400 + (month <= 2 and 1 or 0), month, day
end

local today = math.floor(now / DAY_MS)
local function day_name() return string.format('%04d-%02d-%02d', date_of(today)) end
local function month_name() return string.sub(day_name(), 1, 7) end

local function ms_to_next_day() return (today + 1) * DAY_MS - now end

-- What is left of the calendar month in ms, and its length in s.
local function month_now()
  local year, month, day = date_of(today)
  local days = 30 + (month + math.floor(month / 8)) % 2
  if month == 2 then days = year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0) and 29 or 28 end
  return (today + days - day + 1) * DAY_MS - now, days * DAY_MS / 1000
end

local function spent_by(owner, period) return tonumber(call('GET', key_spend(owner, period)) or 0) end

local function add_spent(owner, period, nano, kept_ms)
  local key = key_spend(owner, period)
  if call('INCRBY', key, nano) == tonumber(nano) then call('PEXPIRE', key, int(kept_ms)) end
end

local function charge_record(record, nano)
  if nano == '?' then
    call('HSET', record, 'unpriced', 1)
  else
    call('HINCRBY', record, 'cost_nano_usd', nano)
  end
end

-- Adds to what a tenant, an API key (false for none) and an end user (<tenant>/<hash>, '' for none) have spent. Of
-- an end user it is summed only where the tenant has set a budget for each: there may be very many.
local function spend(nano, tenant, key, user)
  if nano == '?' or nano == '0' then return end
  local day, month = day_name(), month_name()
  for _, owner in ipairs({'tenant:' .. tenant, key and 'key:' .. key or nil}) do
    add_spent(owner, day, nano, SPENT_DAY_KEPT_MS)
    add_spent(owner, month, nano, SPENT_MONTH_KEPT_MS)
  end
  if user == '' then return end
  local budgets = call('HMGET', key_tenant(tenant), 'end_user_nano_usd_per_day', 'end_user_nano_usd_per_month')
  if budgets[1] then add_spent('user:' .. user, day, nano, SPENT_DAY_KEPT_MS) end
  if budgets[2] then add_spent('user:' .. user, month, nano, SPENT_MONTH_KEPT_MS) end
end

local function charge(id, nano)
  if nano == '' then return end
  charge_record(key_job(id), nano)
  local job = call('HMGET', key_job(id), 'batch', 'tenant', 'key', 'flow')
  if job[1] and call('EXISTS', key_batch(job[1])) == 1 then charge_record(key_batch(job[1]), nano) end
  local user = string.match(job[4], '^[^:]+:[^:]+:[^:/]*/([^:]+)')
  spend(nano, job[2], job[3], user and job[2] .. '/' .. user or '')
end
