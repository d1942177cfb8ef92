-- uses: now
-- OPEN_BUCKET: lets the first API process that asks in a bucket sample the queue for it.
-- Returns {the bucket, 1 if this call is the first one in it, ms until the next bucket}
local bucket = math.floor(now / FIGURES_BUCKET_MS)
local key = key_figures(int(bucket))
local is_first = call('HSETNX', key, 'sampled', 1)
if is_first == 1 then call('PEXPIRE', key, FIGURES_KEPT_MS) end
return {int(bucket), is_first, int((bucket + 1) * FIGURES_BUCKET_MS - now)}
