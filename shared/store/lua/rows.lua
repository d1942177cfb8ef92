-- args: #most_bytes, #field_count, fields_and_names...
-- ROWS: reads some fields of several records: of the first ones, as many as fit in most_bytes, at least one. The caller
-- must check whose they are.
-- fields_and_names: the fields, then the names of the hashes.   Returns {{value or nil, ...}, ...}
local fields, rows, size = {unpack(fields_and_names, 1, field_count)}, {}, 0
for at = field_count + 1, #fields_and_names do
  local row = call('HMGET', fields_and_names[at], unpack(fields))
  for number = 1, field_count do size = size + (row[number] and #row[number] or 0) end
  if #rows > 0 and size > most_bytes then break end
  rows[#rows + 1] = row
end
return rows
