-- ADD_ITEMS: the next lines of a body. Their records stand, but belong to nobody and wait nowhere until they are started.
-- ARGV: id, receiving, how long it may stay silent (ms), most waiting jobs, queued, failed, API key's limits (6), bytes that a
--       tenant may hold, then for each: line, job id or '' (it cannot run), flow, request, its own part of the spec (or why it
--       cannot run), what it may cost (nano-dollars)
-- Returns {'added'} | {'full'} | {'gone'} | {'limited' ...} | {'never' ...} as SUBMIT
local id, queued, failed = ARGV[1], 0, 0
local record, items = key_batch(id), key_batch_items(id)
local batch = call('HMGET', record, 'state', 'live', 'tenant', 'key', 'bytes')
if batch[1] ~= ARGV[2] then return {'gone'} end
local jobs, bytes = tonumber(batch[2] or 0), 0
for i = 14, #ARGV, 6 do
  if ARGV[i + 1] ~= '' then
    jobs = jobs + 1
    bytes = bytes + #ARGV[i + 3] + #ARGV[i + 4]
  end
end
if call('ZCARD', key_waiting()) + jobs > tonumber(ARGV[4]) then return {'full'} end
-- START decides; but of what it would refuse no more need arrive.
local owners = owners_of(batch[3], batch[4] or '', 7)
local refusal = refusal_of(look_at_limits(owners, batch[4] or '', jobs, 0, 0, false))
if refusal then return refusal end
if bytes > 0 then
  refusal = hold_or_refuse(owners, batch[3], bytes, ARGV[13], tonumber(batch[5] or 0))
  if refusal then return refusal end
  call('HINCRBY', record, 'bytes', bytes)
end

local length = call('LLEN', items)
for i = 14, #ARGV, 6 do
  local line, job = ARGV[i], ARGV[i + 1]
  local blank = tonumber(line) - length - 1
  while blank > 0 do -- a thousand at a time: there may be as many as lines
    local some = {}
    for at = 1, math.min(blank, 1000) do some[at] = '' end
    call('RPUSH', items, unpack(some))
    blank = blank - #some
  end
  length = tonumber(line)
  call('RPUSH', items, job)
  if job ~= '' then
    queued = queued + 1
    call('HSET', key_job(job), 'flow', ARGV[i + 2], 'request', ARGV[i + 3], 'spec', ARGV[i + 4], 'batch', id, 'line', line,
      'bytes', #ARGV[i + 3] + #ARGV[i + 4])
    if ARGV[i + 5] ~= '0' then call('HSET', key_job(job), 'estimate', ARGV[i + 5]) end
  else
    failed = failed + 1
    call('HSET', key_batch_invalid(id), line, ARGV[i + 4])
    call('ZADD', key_batch_ended(id), call('ZCARD', key_batch_ended(id)), line)
  end
end
call('HINCRBY', record, 'total', queued + failed)
call('HINCRBY', record, 'live', queued)
call('HINCRBY', record, ARGV[5], queued)
call('HINCRBY', record, ARGV[6], failed)
if failed > 0 then call('HINCRBY', record, 'invalid', failed) end
call('ZADD', key_due(), int(now + tonumber(ARGV[3])), id)
return {'added'}
