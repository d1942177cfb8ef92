-- FINISH: the claim's job ends: state, result, terminal event, in one step.
-- ARGV: id, epoch, source states, state, seq of the terminal event, result or '', retention, cost as in charge(), usage as
--       JSON or '', field, value, ...
-- Returns {'ended'} | {'already'} (by this very claim) | {'refused', state} | {'behind', the seq that the log takes}
local id, state, seq = ARGV[1], ARGV[4], tonumber(ARGV[5])
write_without_memory()
local job = call('HMGET', key_job(id), 'state', 'epoch', 'tenant', 'flow', 'ended_epoch')
if job[5] and job[5] == ARGV[2] then return {'already'} end
if not job[1] or not contains(ARGV[3], job[1]) or job[2] ~= ARGV[2] then return {'refused', job[1] or ''} end
local top = call('XREVRANGE', key_log(id), '+', '-', 'COUNT', 1)[1]
local expected = 0
if top then
  local top_epoch, top_seq = string.match(top[1], '^(%d+)-(%d+)$')
  if top_epoch == ARGV[2] then expected = tonumber(top_seq) + 1 end
end
if seq > expected then return {'behind', expected} end
leave(id, job[3], job[4])
charge(id, ARGV[8])
local result = ARGV[6] ~= '' and ARGV[6] or nil
local usage = ARGV[9] ~= '' and ARGV[9] or nil
local extra = {'ended_epoch', ARGV[2]}
if usage then extra = {'ended_epoch', ARGV[2], 'usage', usage} end
for i = 10, #ARGV do extra[#extra + 1] = ARGV[i] end
end_job(id, state, job[2], expected, ARGV[7], extra, result, usage)
return {'ended'}
