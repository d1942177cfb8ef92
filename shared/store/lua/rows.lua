-- ROWS: the first of some records, as many as fit. Whose they are is looked at by who asks.
-- ARGV: most bytes, how many fields, field..., name of a hash...   Returns {{value or nil, ...}, ...}, one at least
local count = tonumber(ARGV[2])
local fields, rows, size = {unpack(ARGV, 3, count + 2)}, {}, 0
for i = count + 3, #ARGV do
  local row = redis.call('HMGET', ARGV[i], unpack(fields))
  for at = 1, count do size = size + (row[at] and #row[at] or 0) end
  if #rows > 0 and size > tonumber(ARGV[1]) then break end
  rows[#rows + 1] = row
end
return rows
