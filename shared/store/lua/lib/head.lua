-- The head of every script. KEYS[1] is the prefix of all keys that the script touches. Most keys are made from ids and
-- not declared in KEYS, but the hash tag in the prefix puts them all in the slot of KEYS[1].
local call = redis.call

-- Lua's own conversion keeps 14 digits and may write an exponent: every number that is stored is converted by this.
local function int(number) return string.format('%.0f', number) end

-- At maxmemory, Redis refuses a script at its first write if that command may need memory. After a first write that
-- never needs any, it lets all commands through (measured on 7.0.15 and on Valkey 9.1). So scripts that must run at
-- maxmemory begin with this. It changes nothing: no key has the bare prefix as its name.
local function write_without_memory() call('ZREM', KEYS[1], '') end

-- list: words, separated by commas.
local function contains(list, item)
  for word in string.gmatch(list, '[^,]+') do
    if word == item then return true end
  end
  return false
end

-- An index has no TTL. Instead, each new entry removes up to two of the oldest entries whose records are gone.
local function add_to_index(index, id, key_of)
  for _, oldest in ipairs(call('ZRANGE', index, 0, 1)) do
    if call('EXISTS', key_of(oldest)) == 1 then break end
    call('ZREM', index, oldest)
  end
  call('ZADD', index, 0, id)
end
