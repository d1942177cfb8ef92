-- uses: bookkeeping, log, spend
-- args: id, epoch, sources, state, #seq, result, retention, cost, usage, fields...
-- FINISH: ends the job of a claim: state, result and terminal event in one step. seq: of the terminal event. result: ''
-- for none. cost: as in charge(). usage: as JSON, or ''. fields: more fields of the record, each with its value.
-- Returns {'ended'} | {'already'} (by this claim: the first reply was lost) | {'refused', state}
--       | {'incomplete', the seq that the log takes next}
write_without_memory()
local job = call('HMGET', key_job(id), 'state', 'epoch', 'tenant', 'flow', 'ended_epoch')
if job[5] == epoch then return {'already'} end
if not job[1] or not contains(sources, job[1]) or job[2] ~= epoch then return {'refused', job[1] or ''} end
local expected = next_seq(id, epoch)
if seq > expected then return {'incomplete', expected} end
leave(id, job[3], job[4])
charge(id, cost)
local extra = {'ended_epoch', epoch, unpack(fields)}
if usage ~= '' then
  extra[#extra + 1] = 'usage'
  extra[#extra + 1] = usage
end
end_job(id, state, epoch, expected, retention, extra, result ~= '' and result or nil, usage ~= '' and usage or nil)
return {'ended'}
