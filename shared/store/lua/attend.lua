-- uses: now
-- args: name, believed_ms
-- ATTEND: an API process lives, and is believed to for so long.
call('ZADD', key_attendants(), int(now + believed_ms), name)
return 1
