-- How many jobs start before this one, it included: exact for one flow; for several, the sum of min(depth, own rank)
-- over the flows of its band, and all of the bands above. Past `most` flows the sum is scaled up.
local function depth_of(band, rank, most)
  local flows = call('ZRANGE', key_ready(band), 0, most - 1)
  local sum = 0
  for _, flow in ipairs(flows) do
    local depth = call('ZCARD', key_flow(flow))
    sum = sum + (rank and math.min(depth, rank) or depth)
  end
  if #flows < most then return sum end
  return math.floor(sum * call('ZCARD', key_ready(band)) / #flows)
end

local function position(flow, rank, most)
  local own_band = string.match(flow, '^[^:]+')
  local sum = 0
  for band in string.gmatch(BANDS, '[^,]+') do
    if band == own_band then
      local is_ready = call('ZSCORE', key_ready(band), flow) -- if not, it is parked: those before it in its flow are all the same
      return sum + depth_of(band, rank, most) + (is_ready and 0 or rank)
    end
    sum = sum + depth_of(band, nil, most)
  end
end
