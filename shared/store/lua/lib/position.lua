-- The position of a job in the queue, counted from 1. Exact if its band has one flow. Else an estimate: for each flow
-- of its band min(depth of the flow, the job's rank in its own flow), plus all jobs of the bands above. At most `most`
-- flows of a band are counted, and their sum is scaled up.
local depths = {} -- band → {depths of its flows, by how much their sum is scaled up}: the same for all jobs of a page
local function depth_of(band, rank, most)
  if not depths[band] then
    local flows, found = call('ZRANGE', key_ready(band), 0, most - 1), {}
    for at, flow in ipairs(flows) do found[at] = call('ZCARD', key_flow(flow)) end
    depths[band] = {found, #flows < most and 1 or call('ZCARD', key_ready(band)) / #flows}
  end
  local found, scale = unpack(depths[band])
  local sum = 0
  for _, depth in ipairs(found) do sum = sum + (rank and math.min(depth, rank) or depth) end
  return math.floor(sum * scale)
end

-- Also returns whether the flow is ready. If it is not, it is parked: then the jobs before this one in it count too.
local bases = {} -- flow → {the jobs of the bands above, whether it is ready}
local function position(flow, rank, most)
  local own_band = string.match(flow, '^[^:]+')
  if not bases[flow] then
    local sum = 0
    for band in string.gmatch(BANDS, '[^,]+') do
      if band == own_band then break end
      sum = sum + depth_of(band, nil, most)
    end
    bases[flow] = {sum, call('ZSCORE', key_ready(own_band), flow)}
  end
  local sum, is_ready = unpack(bases[flow])
  return sum + depth_of(own_band, rank, most) + (is_ready and 0 or rank), is_ready
end
