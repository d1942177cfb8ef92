-- uses: now
-- args: name, believed_ms
-- ATTEND: an API process is alive; others believe so for believed_ms.
call('ZADD', key_attendants(), int(now + believed_ms), name)
return 1
