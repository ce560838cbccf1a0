-- A bucket is an arrival time in nanoseconds since 1970, of digits: as a Lua number it would lose the last ones. So times are
-- pairs of seconds and nanoseconds here, and only what is owed, a difference, is ever one number.
local time = redis.call('TIME')
local s, ns = tonumber(time[1]), tonumber(time[2]) * 1000

-- What is owed, or less than nothing if that is over; nothing where something stands that is not ours.
local function owed_in(key)
    local value = redis.call('GET', key)
    if value and #value > 9 and #value < 20 and not string.find(value, '%D') then
        return (tonumber(string.sub(value, 1, -10)) - s) * 1000000000 + (tonumber(string.sub(value, -9)) - ns)
    end
    return 0
end

local function write(key, nanos)
    local after = ns + nanos
    local carried = math.floor(after / 1000000000)
    local value = string.format('%.0f%09.0f', s + carried, after - carried * 1000000000)
    redis.call('SET', key, value, 'PX', string.format('%.0f', math.ceil(nanos / 1000000) + 1))
end

