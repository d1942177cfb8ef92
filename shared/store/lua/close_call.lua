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
  'reserved_output', 'estimated', 'unpriced', 'retry', 'day', 'counted', 'end_user', 'counted_user')
if not row[1] or (row[2] and row[2] ~= LOST) then return 0 end
local first, unmade, is_used = not row[2], ended == UNMADE, false
for at = 2, #amounts, 2 do is_used = is_used or (not unmade and amounts[at] ~= '0') end

-- The model for which the call is counted. Callers can invent names, and a day's hash is read as a whole. So a name
-- without a row gets none, and USAGE_OTHER is counted, if the call used nothing or the day has MOST_USAGE_ROWS.
local function counted_as(usage)
  if call('HEXISTS', usage, row[5] .. '\n' .. row[4] .. '\ncalls') == 1 then return row[5] end
  if not is_used or tonumber(call('HGET', usage, '\n\nrows') or 0) >= MOST_USAGE_ROWS then
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
local sums_before, sums_now = {}, {}
local function sum(metric, amount, before)
  sums_before[metric], sums_now[metric] = before, amount
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
if call('PTTL', usage) == -1 then -- once a day
  call('PEXPIRE', usage, usage_ms)
  call('ZADD', key_usage_tenants(), int(now), row[3])
  call('ZREMRANGEBYSCORE', key_usage_tenants(), '-inf', int(now - usage_ms))
end

-- The same sums by end user: a field for each has lines `model\nkey\tsums` after a line break, and the field '' counts
-- the lines of the day. Callers invent end users, so beyond MOST_END_USER_ROWS they are counted as USAGE_OTHER. They
-- invent models too: what separates is escaped in their names.
local by_user = key_end_user_usage(row[3], day)
local function line_of(user, model)
  local escaped = string.gsub(model, '[%%\t\n]', function(separator)
    return string.format('%%%02X', string.byte(separator))
  end)
  local text, name = call('HGET', by_user, user) or '\n', '\n' .. escaped .. '\n' .. row[4] .. '\t'
  local _, last = string.find(text, name, 1, true)
  return text, name, last
end
local function sum_of_user(user, model, sums, sign)
  local text, name, last = line_of(user, model)
  if not last then
    call('HINCRBY', by_user, '', 1)
    text, last = text .. string.sub(name, 2) .. '\n', #text + #name - 1
  end
  local line_end = string.find(text, '\n', last, true)
  local numbers = string.gmatch(string.sub(text, last + 1, line_end - 1), '%S+')
  local added = {}
  for metric in string.gmatch(USAGE_METRICS, '[^,]+') do
    added[#added + 1] = int((numbers() or 0) + sign * sums[metric])
  end
  call('HSET', by_user, user, string.sub(text, 1, last) .. table.concat(added, ' ') .. string.sub(text, line_end))
end
if row[14] then
  if row[15] then sum_of_user(row[15], counted_before, sums_before, -1) end
  local _, _, known = line_of(row[14], counted)
  local is_full = tonumber(call('HGET', by_user, '') or 0) >= MOST_END_USER_ROWS
  local user = (known or (is_used and not is_full)) and row[14] or USAGE_OTHER
  if not unmade then sum_of_user(user, counted, sums_now, 1) end
  closing[#closing + 1] = 'counted_user'
  closing[#closing + 1] = user
  if call('PTTL', by_user) < 0 then call('PEXPIRE', by_user, usage_ms) end
end

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
