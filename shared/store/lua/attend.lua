-- ATTEND: an API process lives. ARGV: name, for how long this holds (ms)
call('ZADD', key_attendants(), int(now + tonumber(ARGV[2])), ARGV[1])
return 1
