-- uses: now
-- args: name, #believed_ms, followers
-- ATTEND: an API process is alive, and has so many followers; others believe so for believed_ms.
call('ZADD', key_attendants(), int(now + believed_ms), name)
if followers ~= '0' then
  call('HSET', key_followers(), name, followers)
  call('PEXPIRE', key_followers(), int(6 * believed_ms))
elseif call('HDEL', key_followers(), name) == 0 then
  return 1
end
for _, other in ipairs(call('HKEYS', key_followers())) do
  if not call('ZSCORE', key_attendants(), other) then call('HDEL', key_followers(), other) end
end
return 1
