-- uses: now
-- args: amounts...
-- ADD_FIGURES: adds to the figures of the present bucket. amounts: name, amount, name, amount, ...
local bucket = key_figures(int(math.floor(now / FIGURES_BUCKET_MS)))
for at = 1, #amounts, 2 do call('HINCRBY', bucket, amounts[at], amounts[at + 1]) end
call('PEXPIRE', bucket, FIGURES_KEPT_MS)
return 1
