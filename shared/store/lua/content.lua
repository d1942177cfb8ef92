-- args: id, tenant, kind
-- CONTENT: the request of a job, or its result, for nobody but its tenant: another's is not read, so that its size
-- shows in no time either.   kind: 'request' | 'result'
if call('HGET', key_job(id), 'tenant') ~= tenant then return false end
if kind == 'result' then return call('GET', key_result(id)) end
return call('HGET', key_job(id), 'request')
