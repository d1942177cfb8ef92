-- RESERVE: may this call be made now? If so it is counted, and its row in the ledger opened, before it is made.
-- ARGV: route, call, limits: requests, input tokens, output tokens, concurrency ('' for none), retry (1/0), least retries a
--       minute, input estimate, output estimate, holder's lease ms, row's TTL ms, may be a probe (1/0), then field, value, ...
--       of the row, its tenant first
-- Returns {'go', now, probe (1/0)} | {'shut' | 'full' | 'spent' | 'others', ms to wait, reason}
local SPARED_FOR_PATIENT_MS, SPARED_FOR_OTHERS_MS = 5000, 500
local route, id = ARGV[1], ARGV[2]
local holders = key_calls(route)
call('ZREM', holders, '') -- as write_without_memory: a running job must get through at maxmemory
local opened = call('HGET', key_call(id), 'opened_ms')
if opened then -- asked again: the first answer was lost
  call('ZADD', holders, int(now + ARGV[11]), id)
  call('EXPIRE', holders, 86400)
  return {'go', opened, call('HGET', key_route(route), 'probe') == id and 1 or 0}
end

local shut, reason, open = gate_of(route)
if shut > 0 then return {'shut', int(shut), reason} end
local tenant = ARGV[15]
if open then
  -- A probe is a question to the upstream. It is not left to a job whose own timer would answer it, nor to one tenant's jobs again
  -- and again, unless nobody else asks.
  local known = call('HMGET', key_route(route), 'shut_ms', 'probe_tenant')
  local ready_ms = now - tonumber(known[1] or 0)
  local spared_ms = ARGV[13] == '0' and SPARED_FOR_PATIENT_MS or known[2] == tenant and SPARED_FOR_OTHERS_MS or 0
  if ready_ms < spared_ms then return {'others', int(spared_ms - ready_ms), reason} end
end

local window = window_of(route)
local sums = window[1]
local requests, input, output = limits_of(route, ARGV[3], ARGV[4], ARGV[5])
local need_input, need_output = math.min(tonumber(ARGV[9]), input or 0), math.min(tonumber(ARGV[10]), output or 0)
if requests and sums[1] + 1 > requests then return {'full', int(room_ms(route, window, 1, 1, requests)), ''} end
if input and sums[3] + need_input > input then return {'full', int(room_ms(route, window, 3, need_input, input)), ''} end
if output and sums[4] + need_output > output then return {'full', int(room_ms(route, window, 4, need_output, output)), ''} end
if ARGV[6] ~= '' and running_of(route) >= tonumber(ARGV[6]) then return {'full', 100, ''} end

-- Where many calls fail, retries are a tenth of all calls: a storm is not multiplied. An open circuit's probe is one call.
local most_retries = math.ceil(math.max(tonumber(ARGV[8]), sums[1] / 10))
if ARGV[7] == '1' and not open and sums[2] >= most_retries then
  local outcomes = outcomes_of(route)
  local _, failed = string.gsub(outcomes, 'F', '')
  if failed * 10 > #outcomes then return {'spent', int(room_ms(route, window, 2, 1, most_retries)), ''} end
end

count(route, window, window[3], {1, tonumber(ARGV[7]), need_input, need_output})
call('EXPIRE', key_window(route), 3600)
call('EXPIRE', key_route(route), 86400)
call('ZADD', key_routes(), int(now), route)
call('EXPIRE', key_routes(), 86400)
call('ZADD', holders, int(now + ARGV[11]), id)
call('EXPIRE', holders, 86400)
if open then call('HSET', key_route(route), 'probe', id, 'probe_tenant', tenant) end
call('HSET', key_call(id), 'route', route, 'opened_ms', int(now), 'bucket', int(window[3]), 'reserved_input', int(need_input),
  'reserved_output', int(need_output), 'retry', ARGV[7], unpack(ARGV, 14))
call('PEXPIRE', key_call(id), ARGV[12])
return {'go', int(now), open and 1 or 0}
