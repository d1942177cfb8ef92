-- uses: bookkeeping
-- args: id, tenant, sources, cancelled, retention
-- CANCEL: ends a job at once, whatever it is doing. Its worker is notified, and what it sends from now on is refused.
-- Returns 1 | 0 (it had ended) | -1 (no such job of this tenant)
write_without_memory()
local is_cancelled = cancel_job(id, tenant, sources, cancelled, retention)
if is_cancelled == nil then return -1 end
return is_cancelled and 1 or 0
