-- uses: spend
-- args: id, cost, epoch, tenant, key, user, last_token_ms
-- CHARGE: adds the cost of a call to its job, which may have ended before the call, and to the budgets of its tenant,
-- its API key and its end user. They pay even if the job was erased meanwhile: cancelling and erasing a job refunds
-- nothing.
-- cost: as in charge(). epoch: of the claim, or 0. If this claim's FINISH or RELEASE has charged the cost and only its
-- reply was lost, nothing is added. key, user (<tenant>/<hash>): '' for none. last_token_ms: when the claim's newest
-- content came, '' for none.
write_without_memory()
local charged = call('HMGET', key_job(id), 'ended_epoch', 'released_epoch', 'claim_epoch')
if charged[1] == epoch or charged[2] == epoch then return 0 end
if call('EXISTS', key_job(id)) == 1 then
  charge(id, cost)
  if last_token_ms ~= '' and charged[3] == epoch then call('HSET', key_job(id), 'last_token_ms', last_token_ms) end
else
  spend(cost, tenant, key ~= '' and key, user)
end
return 1
