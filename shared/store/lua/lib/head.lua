-- The head of every script. KEYS[1] is what all keys that it touches begin with. Keys that are made from ids are
-- undeclared, but in the slot of KEYS[1].
local call = redis.call

-- Lua's own conversion keeps 14 digits and may write an exponent: every number that is stored goes through here.
local function int(number) return string.format('%.0f', number) end

-- Redis at maxmemory refuses a script whose first writing command may need memory, and lets everything through after
-- one that never does (measured on 7.0.15 and on Valkey 9.1). Scripts that must get through begin with this. No key is
-- named like the prefix.
local function write_without_memory() call('ZREM', KEYS[1], '') end

-- list: words, with commas.
local function contains(list, item)
  for word in string.gmatch(list, '[^,]+') do
    if word == item then return true end
  end
  return false
end

-- An index has no TTL: instead each new entry drops up to two of the oldest whose record is gone.
local function add_to_index(index, id, key_of)
  for _, oldest in ipairs(call('ZRANGE', index, 0, 1)) do
    if call('EXISTS', key_of(oldest)) == 1 then break end
    call('ZREM', index, oldest)
  end
  call('ZADD', index, 0, id)
end
