-- uses: limits
-- args: tenant, key, key_limits, #tenant_running, #tenant_bytes
-- READ_LIMITS: what is used of each limit that a tenant and an API key have. Writes nothing.
-- key: '' for none. tenant_running, tenant_bytes: the limits of a tenant without its own; 0 for none.
-- Returns {now, limits of the tenant, limits of the key}, limits = {{name, limit, used, of a budget: what running jobs
--       hold of it, when the whole limit is free again (ms) or -1}, ...}
local owners = owners_of(tenant, key, key_limits)
local queued, spent = read_stored(owners, '')
local running = {key_tenant_running(tenant), key_key_running(key)}
local defaults = {running = {tenant_running, 0}, bytes = {tenant_bytes, 0}}

local function uses_of(owner, at)
  local uses = {}
  local function add_use(name, limit, used, left_ms, held)
    if limit > 0 then uses[#uses + 1] = {name, limit, used, held or 0, left_ms > 0 and now + left_ms or -1} end
  end
  if owner.requests > 0 or owner.tokens > 0 then
    local window = window_of(pace(), key_pace(owner.name))
    add_use('requests_per_minute', owner.requests, window.sums[REQUESTS], whole_ms(window, REQUESTS))
    add_use('tokens_per_minute', owner.tokens, window.sums[TOKENS], whole_ms(window, TOKENS))
  end
  add_use('running_jobs', owner.running > 0 and owner.running or defaults.running[at], call('SCARD', running[at]), 0)
  add_use('queued_jobs', owner.queued, tonumber(queued[at] or 0), 0)
  add_use('waiting_bytes', owner.bytes > 0 and owner.bytes or defaults.bytes[at],
    tonumber(call('HGET', key_held_bytes(), tenant) or 0), 0)
  if spent[at] then
    local held, month_left_ms = tonumber(call('HGET', key_held_budgets(), owner.name) or 0), month_now()
    add_use('usd_per_day', owner.a_day, spent[at][1], ms_to_next_day(), held)
    add_use('usd_per_month', owner.a_month, spent[at][2], month_left_ms, held)
  end
  return uses
end

return {now, uses_of(owners[1], 1), owners[2] and uses_of(owners[2], 2) or {}}
