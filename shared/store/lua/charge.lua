-- uses: spend
-- args: id, cost, epoch, tenant, key
-- CHARGE: what a call cost is added to its job, which may have ended before the call did, and to its owners' budgets,
-- even if the job was erased meanwhile: who cancels and erases has paid all the same.
-- cost: as in charge(). epoch: of the claim, or 0. What this claim's FINISH or RELEASE charged, if its reply was lost,
-- is not charged again. key: '' for none.
write_without_memory()
local charged = call('HMGET', key_job(id), 'ended_epoch', 'released_epoch')
if charged[1] == epoch or charged[2] == epoch then return 0 end
if call('EXISTS', key_job(id)) == 1 then
  charge(id, cost)
else
  spend(cost, tenant, key ~= '' and key)
end
return 1
