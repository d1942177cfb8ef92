-- uses: now
-- args: #most_flows
-- DEPTHS: what waits and what runs, how many jobs have ended how, and who follows. Reads only.
-- most_flows: how many flows of a band are looked at, those whose turn is next.
-- Returns {now, waiting, running, {outcome, jobs, ...}, followers, {band...}}, band = {its flows, the flows that were
-- looked at, since when the first job of one of these could have started or -1, chain, jobs, chain, jobs, ...}
local bands = {}
for band in string.gmatch(BANDS, '[^,]+') do
  local flows, oldest, jobs_of = call('ZRANGE', key_ready(band), 0, most_flows - 1), -1, {}
  for _, flow in ipairs(flows) do
    local chain = string.match(flow, '^[^:]+:[^:]+:[^:]*:(.*)$')
    jobs_of[chain] = (jobs_of[chain] or 0) + call('ZCARD', key_flow(flow))
    local times = call('HMGET', key_job(call('ZRANGE', key_flow(flow), 0, 0)[1] or ''), 'created_ms', 'due_ms', 'epoch')
    if times[1] then
      -- A job that was put back has an epoch of that moment, or of its last claim.
      local since = math.max(tonumber(times[1]), tonumber(times[2] or 0), tonumber(times[3] or 0))
      if oldest < 0 or since < oldest then oldest = since end
    end
  end
  local found = {#flows < most_flows and #flows or call('ZCARD', key_ready(band)), #flows, int(oldest)}
  for chain, jobs in pairs(jobs_of) do
    found[#found + 1] = chain
    found[#found + 1] = jobs
  end
  bands[#bands + 1] = found
end
local followers, counts = 0, call('HGETALL', key_followers())
for at = 1, #counts, 2 do
  if tonumber(call('ZSCORE', key_attendants(), counts[at]) or 0) > now then
    followers = followers + counts[at + 1]
  end
end
return {int(now), call('ZCARD', key_waiting()), call('ZCARD', key_running()), call('HGETALL', key_ended()), followers,
  bands}
