-- CONTENT: the request of a job, or its result, for nobody but its tenant: another's is not read, so that its size shows in
-- no time either. ARGV: id, tenant, 'request' | 'result'
if redis.call('HGET', key_job(ARGV[1]), 'tenant') ~= ARGV[2] then return false end
if ARGV[3] == 'result' then return redis.call('GET', key_result(ARGV[1])) end
return redis.call('HGET', key_job(ARGV[1]), 'request')
