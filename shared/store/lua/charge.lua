-- CHARGE: what a call cost is added to its job, which may have ended before the call did, and to its owners' budgets, though
-- the job be erased by then: who cancels and erases has paid all the same.
-- ARGV: id, cost as in charge(), epoch of the claim or 0, tenant, API key or ''. What this claim's FINISH or RELEASE told, if
--       its answer was lost, is not charged again.
write_without_memory()
local told = call('HMGET', key_job(ARGV[1]), 'ended_epoch', 'released_epoch')
if told[1] == ARGV[3] or told[2] == ARGV[3] then return 0 end
if call('EXISTS', key_job(ARGV[1])) == 1 then
  charge(ARGV[1], ARGV[2])
else
  spend(ARGV[2], ARGV[4], ARGV[5] ~= '' and ARGV[5])
end
return 1
