-- args: tenant, label, before, #most, spans...
-- LABELLED: the tenant's jobs that have a label, newest first. before: what their ids sort before. spans: where to
-- look, the newest first. Returns ids, at most `most`
local ids = {}
for _, span in ipairs(spans) do
  local found = call('ZREVRANGEBYLEX', key_labels(tenant, span), '(' .. label .. ':' .. before, '[' .. label .. ':',
    'LIMIT', 0, most - #ids)
  for _, member in ipairs(found) do ids[#ids + 1] = string.sub(member, #label + 2) end
  if #ids == most then break end
end
return ids
