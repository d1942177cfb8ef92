-- uses: held
-- Labels: a tenant's jobs by their tags, their metadata, and how they ended without success. There is an index for each
-- span of ids (nine hours: the first letters of an id are its time), which goes by its TTL. So nothing has to look for
-- entries whose records are gone.

-- labels: words, separated by blanks. kept_ms: how long the job is kept, as far as is known now. The index is kept an
-- hour longer, so that not every job renews its TTL.
local function add_labels(tenant, id, labels, kept_ms)
  local name, members = key_labels(tenant, string.sub(id, 5, 9)), {}
  for label in string.gmatch(labels, '%S+') do
    members[#members + 1] = 0
    members[#members + 1] = label .. ':' .. id
  end
  call('ZADD', name, unpack(members))
  if call('PTTL', name) < kept_ms then call('PEXPIRE', name, int(kept_ms + HOUR_MS)) end
end
