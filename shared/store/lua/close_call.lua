-- uses: upstream
-- args: route, id, ended, #is_estimated, today, usage_ms, verdict, #shut_ms, code, learned_requests, learned_input,
--   learned_output, #is_priced, first_token_ms, message, upstream_status, amounts...
-- CLOSE_CALL: a call ended. Closes its row, adds its tokens to the tenant's day and to the route's limits, and stores
-- what the call showed of the route. A row that was closed as LOST is closed again if the worker that made the call is
-- alive after all. The row of a call that was never made (UNMADE) is deleted.
-- usage_ms: how long the day's sums are kept. verdict: on the route (ok, trouble, none). shut_ms: how long nobody may
-- call the route; code: why. learned_*: limits that the upstream reported, 0 for none. first_token_ms, message (of the
-- failure, without content), upstream_status: for the row, '' for none. amounts: name, value of each token count and of
-- the cost.
-- Returns 0 if it was closed before; else 1, plus the cost that was counted when the row was closed as LOST.
call('ZREM', key_calls(route), id)
local row = call('HMGET', key_call(id), 'opened_ms', 'ended', 'tenant', 'key', 'model', 'bucket', 'reserved_input',
  'reserved_output', 'estimated', 'unpriced', 'retry', 'day', 'counted')
if not row[1] or (row[2] and row[2] ~= LOST) then return 0 end
local first, unmade = not row[2], ended == UNMADE

-- The model for which the call is counted. Callers can invent names, and a day's hash is read as a whole. So a name
-- without a row gets none, and USAGE_OTHER is counted, if the call used nothing or the day has MOST_USAGE_ROWS.
local function counted_as(usage)
  if call('HEXISTS', usage, row[5] .. '\n' .. row[4] .. '\ncalls') == 1 then return row[5] end
  local is_used = false
  for at = 2, #amounts, 2 do is_used = is_used or amounts[at] ~= '0' end
  if unmade or not is_used or tonumber(call('HGET', usage, '\n\nrows') or 0) >= MOST_USAGE_ROWS then
    return USAGE_OTHER
  end
  call('HINCRBY', usage, '\n\nrows', 1)
  return row[5]
end

-- The ledger. What was counted when the row was closed as LOST is taken back, on the day for which it was counted.
local day = row[12] or today
local estimated, unpriced = unmade and 0 or is_estimated, unmade and 0 or 1 - is_priced
local usage = key_usage(row[3], day)
local counted_before, counted = row[13] or row[5], counted_as(usage)
local closing = {'ended', ended, 'closed_ms', int(now), 'estimated', int(estimated), 'unpriced', int(unpriced),
  'day', day, 'counted', counted}
for name, value in pairs({first_token_ms = first_token_ms, message = message, upstream_status = upstream_status}) do
  if value ~= '' then
    closing[#closing + 1] = name
    closing[#closing + 1] = value
  end
end
local function sum_of(model, metric, change)
  if change ~= 0 then call('HINCRBY', usage, model .. '\n' .. row[4] .. '\n' .. metric, int(change)) end
end
local function sum(metric, amount, before)
  if counted == counted_before then return sum_of(counted, metric, amount - before) end
  sum_of(counted_before, metric, -before)
  sum_of(counted, metric, amount)
end
local input, output, taken_back = 0, 0, 0
for at = 1, #amounts, 2 do
  local name, amount = amounts[at], unmade and 0 or tonumber(amounts[at + 1])
  local before = first and 0 or tonumber(call('HGET', key_call(id), name) or 0)
  local more = amount - before
  sum(name, amount, before)
  if name == 'cost_nano_usd' then taken_back = before end
  closing[#closing + 1] = name
  closing[#closing + 1] = int(amount)
  -- Tokens that are read from a cache do not count towards an upstream's limit of input tokens; those written to it do.
  if name == 'input_tokens' or name == 'cache_creation_input_tokens' then input = input + more end
  if name == 'output_tokens' then output = more end
end
sum('calls', unmade and 0 or 1, first and 0 or 1)
sum('estimated_calls', estimated, tonumber(row[9] or 0))
sum('unpriced_calls', unpriced, tonumber(row[10] or 0))
if call('PTTL', usage) < 0 then call('PEXPIRE', usage, usage_ms) end

-- The limits: what was used replaces what was reserved. Where there was no limit, nothing was reserved.
if first then input, output = input - tonumber(row[7]), output - tonumber(row[8]) end
if row[7] == '0' then input = 0 end
if row[8] == '0' then output = 0 end
if unmade then
  correct(ASKED, key_window(route), row[6], {-1, -row[11], input, output})
elseif input ~= 0 or output ~= 0 then
  correct(ASKED, key_window(route), row[6], {0, 0, input, output})
end

if unmade then
  call('DEL', key_call(id))
  if call('HGET', key_route(route), 'probe') == id then
    call('HDEL', key_route(route), 'probe')
    call('PUBLISH', channel_gates(), route)
  end
  return 1 + taken_back
end
call('HSET', key_call(id), unpack(closing))
local record = key_route(route)
if learned_requests ~= '0' then call('HSET', record, 'limit_requests', learned_requests) end
if learned_input ~= '0' then call('HSET', record, 'limit_input', learned_input) end
if learned_output ~= '0' then call('HSET', record, 'limit_output', learned_output) end
call('EXPIRE', record, 86400)

local OPEN_FIRST = 1e13 -- ms: where too many routes are in trouble, those are kept whose circuit is open

-- The gate and the circuit. A call that was opened before the circuit last closed says nothing about the time since.
local known = call('HMGET', record, 'shut_ms', 'open_ms', 'probe', 'cooldown_ms', 'closed_ms')
local shut, cooldown = tonumber(known[1] or 0), tonumber(known[4] or 0)
local change, is_news, open_ms = {}, false, known[2]
local function set(name, value)
  change[#change + 1] = name
  change[#change + 1] = value
end
local function shut_until(moment, reason)
  if moment > math.max(shut, now) then
    shut, is_news = moment, true
    set('shut_ms', int(moment))
    set('reason', reason)
  end
end
shut_until(now + shut_ms, code)
if tonumber(row[1]) >= tonumber(known[5] or 0) then
  if known[2] then -- open
    if known[3] == id then
      is_news = true
      call('HDEL', record, 'probe')
      if verdict == 'ok' then
        call('HDEL', record, 'open_ms', 'cooldown_ms', 'outcomes')
        open_ms = nil
        set('closed_ms', int(now))
      elseif verdict == 'trouble' then
        cooldown = math.min(2 * cooldown, LONGEST_COOLDOWN_MS)
        set('cooldown_ms', int(cooldown))
        shut_until(now + cooldown, code)
      end
    end
  elseif verdict ~= 'none' then
    local outcomes = outcomes_of(route)
    if verdict == 'trouble' or outcomes ~= '' then
      outcomes = string.sub(outcomes .. (verdict == 'trouble' and 'F' or 'S'), -20)
      local _, failed = string.gsub(outcomes, 'F', '')
      set('outcomes', failed > 0 and outcomes or '')
      set('outcome_ms', int(now))
      -- The call began after a Retry-After was over, all recent calls failed, and the upstream asks to wait again, for
      -- longer than a job waits in its slot. More calls would only test the upstream, and use up the attempts of the
      -- jobs at the head of the queue: the circuit opens, and lets one call through at a time.
      local is_refused_again = shut_ms > LONGEST_WAIT_IN_SLOT_MS and known[1]
        and tonumber(row[1]) >= tonumber(known[1]) and #outcomes > 1 and failed == #outcomes
      if failed >= 10 or is_refused_again then
        is_news = true
        set('open_ms', int(now))
        open_ms = int(now)
        set('cooldown_ms', int(1000))
        shut_until(now + 1000, code)
      end
    end
  end
end
if #change > 0 then
  call('HSET', record, unpack(change))
  call('EXPIRE', record, 86400)
end
if is_news and (open_ms or shut > now) then
  call('ZADD', key_troubled(), int(now + (open_ms and OPEN_FIRST or 0)), route)
  call('ZREMRANGEBYRANK', key_troubled(), 0, -1001)
  call('EXPIRE', key_troubled(), 86400)
end
if is_news then call('PUBLISH', channel_gates(), route) end
return 1 + taken_back
