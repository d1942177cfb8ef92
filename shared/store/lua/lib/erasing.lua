-- uses: held, webhooks
-- Deletes a job that has ended: its prompt, log and result. Its Idempotency-Key stays, so that a repeated submit
-- creates no second job.
local function erase_job(id, tenant)
  give_up_request(id, tenant)
  local labels = call('HGET', key_job(id), 'labels')
  for label in string.gmatch(labels or '', '%S+') do
    call('ZREM', key_labels(tenant, string.sub(id, 5, 9)), label .. ':' .. id)
  end
  call('DEL', key_job(id), key_result(id), key_log(id))
  call('ZREM', key_unfolded(), id)
  call('ZREM', key_index(tenant), id)
  forget_delivery(id)
end
