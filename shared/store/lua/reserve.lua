-- uses: upstream
-- args: route, id, most_requests, most_input, most_output, #most_running, is_retry, #least_retries, #input_estimate,
--   #output_estimate, #lease_ms, row_ms, may_probe, tenant, key, end_user, job, epoch, attempt, model,
--   worker
-- RESERVE: may this call be made now? If so, it is counted and its row in the ledger is opened, before it is made.
-- most_*: the limits of the settings, '' for none. least_retries: how many retries a minute are always allowed.
-- lease_ms: how long the call is held without renewal. row_ms: how long its row is kept. is_retry, may_probe: 1 or 0.
-- The others are stored in the row.
-- Returns {'go', opened_ms, probe (1 or 0)} | {'shut' | 'full' | 'spent' | 'others', ms to wait, reason}
local SPARED_FOR_PATIENT_MS, SPARED_FOR_OTHERS_MS = 5000, 500
local holders = key_calls(route)
write_without_memory() -- a running job must get through at maxmemory
local opened = call('HGET', key_call(id), 'opened_ms')
if opened then -- asked again: the first reply was lost
  call('ZADD', holders, int(now + lease_ms), id)
  call('EXPIRE', holders, 86400)
  return {'go', opened, call('HGET', key_route(route), 'probe') == id and 1 or 0}
end

local shut, reason, open = gate_of(route)
if shut > 0 then return {'shut', int(shut), reason} end
if open then
  -- A probe tests the upstream. A job whose own timers would decide the test (may_probe is 0), or of the tenant that
  -- probed last, becomes the probe only if no other job asks for a moment.
  local known = call('HMGET', key_route(route), 'shut_ms', 'probe_tenant')
  local ready_ms = now - tonumber(known[1] or 0)
  local spared_ms = may_probe == '0' and SPARED_FOR_PATIENT_MS or known[2] == tenant and SPARED_FOR_OTHERS_MS or 0
  if ready_ms < spared_ms then return {'others', int(spared_ms - ready_ms), reason} end
end

local window = window_of(ASKED, key_window(route))
local sums = window.sums
local requests, input, output = limits_of(route, most_requests, most_input, most_output)
local need_input, need_output = math.min(input_estimate, input or 0), math.min(output_estimate, output or 0)
local wait_ms = requests and room_ms(window, CALLS, 1, requests) or 0
if wait_ms == 0 and input then wait_ms = room_ms(window, INPUT, need_input, input) end
if wait_ms == 0 and output then wait_ms = room_ms(window, OUTPUT, need_output, output) end
if wait_ms > 0 then return {'full', int(wait_ms), ''} end
if most_running and running_of(route) >= most_running then return {'full', 100, ''} end

-- While more than a tenth of the calls fail, retries may be only a tenth of all calls, so that they do not multiply a
-- storm. The probe of an open circuit is exempt: it is one call.
local most_retries = math.ceil(math.max(least_retries, sums[CALLS] / 10))
if is_retry == '1' and not open and sums[RETRIES] >= most_retries then
  local outcomes = outcomes_of(route)
  local _, failed = string.gsub(outcomes, 'F', '')
  if failed * 10 > #outcomes then return {'spent', int(room_ms(window, RETRIES, 1, most_retries)), ''} end
end

count_in(window, {1, tonumber(is_retry), need_input, need_output})
call('EXPIRE', key_route(route), 86400)
call('ZADD', key_routes(), int(now), route)
call('EXPIRE', key_routes(), 86400)
call('ZADD', holders, int(now + lease_ms), id)
call('EXPIRE', holders, 86400)
if open then call('HSET', key_route(route), 'probe', id, 'probe_tenant', tenant) end
call('HSET', key_call(id), 'route', route, 'opened_ms', int(now), 'bucket', int(window.bucket),
  'reserved_input', int(need_input), 'reserved_output', int(need_output), 'retry', is_retry, 'tenant', tenant,
  'key', key, 'job', job, 'epoch', epoch, 'attempt', attempt, 'model', model, 'input_estimate', int(input_estimate),
  'worker', worker)
if end_user ~= '' then call('HSET', key_call(id), 'end_user', end_user) end
call('PEXPIRE', key_call(id), row_ms)
return {'go', int(now), open and 1 or 0}
