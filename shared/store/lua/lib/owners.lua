-- Whose jobs a flow holds, as its name says: <band>:<tenant>:<API key>:<chain>, or, for an end user's jobs,
-- <band>:<tenant>:<API key>/<hash of the end user>:<chain>. Only a key whose limits CLAIM must check is in it. An end
-- user is called <tenant>/<hash>.

-- Who must have room before a job of the flow starts, and the sets of their running jobs.
local function owners_of_flow(flow)
  local tenant, key, user = string.match(flow, '^[^:]+:([^:]+):([^:/]*)/?([^:]*):')
  local owners, running = {'tenant:' .. tenant}, {key_tenant_running(tenant)}
  if key ~= '' then owners[2], running[2] = 'key:' .. key, key_key_running(key) end
  if user ~= '' then
    user = tenant .. '/' .. user
    owners[#owners + 1], running[#running + 1] = 'user:' .. user, key_user_running(user)
  end
  return owners, running
end

-- The flow's name with an end user, unless it has one.
local function with_user(flow, user)
  return (string.gsub(flow, '^([^:]+:[^:]+:[^:/]*):', '%1/' .. string.match(user, '/(.*)$') .. ':'))
end
