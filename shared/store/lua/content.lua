-- args: id, tenant, kind
-- CONTENT: a job's request, or its result or the partial answer in its place, for its own tenant only. For another
-- tenant nothing is read, so that the time of the reply does not show the size.   kind: 'request' | 'result'
if call('HGET', key_job(id), 'tenant') ~= tenant then return false end
if kind == 'result' then return call('GET', key_result(id)) end
return call('HGET', key_job(id), 'request')
