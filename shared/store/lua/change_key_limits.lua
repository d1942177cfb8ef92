-- uses: limits
-- args: key, #running, #a_day, #a_month
-- CHANGE_KEY_LIMITS: CLAIM uses the new limits of an API key at once, and not only from its next submit on.
write_without_memory()
if call('EXISTS', key_key_limits(key)) == 0 then return 0 end
call('SET', key_key_limits(key), of_claims(running, a_day, a_month), 'KEEPTTL')
look_at_parked('key:' .. key)
return 1
