-- uses: spend
-- args: id, cost, epoch, tenant, key
-- CHARGE: adds the cost of a call to its job, which may have ended before the call, and to the budgets of its tenant
-- and its API key. They pay even if the job was erased meanwhile: cancelling and erasing a job refunds nothing.
-- cost: as in charge(). epoch: of the claim, or 0. If this claim's FINISH or RELEASE has charged the cost and only its
-- reply was lost, nothing is added. key: '' for none.
write_without_memory()
local charged = call('HMGET', key_job(id), 'ended_epoch', 'released_epoch')
if charged[1] == epoch or charged[2] == epoch then return 0 end
if call('EXISTS', key_job(id)) == 1 then
  charge(id, cost)
else
  spend(cost, tenant, key ~= '' and key)
end
return 1
