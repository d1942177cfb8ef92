-- uses: now
-- args: worker, #kept_ms, facts...
-- ANNOUNCE: a worker is alive, and says this of itself. facts: name, value, name, value, ...
call('HSET', key_worker(worker), 'seen_ms', int(now), unpack(facts))
call('PEXPIRE', key_worker(worker), int(kept_ms))
call('SADD', key_workers(), worker)
call('EXPIRE', key_workers(), 3600)
