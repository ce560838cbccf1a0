-- A bucket is an arrival time in nanoseconds since 1970, as decimal digits: a Lua number would lose
-- the last ones. So times are pairs of seconds and nanoseconds here, and only a backlog, a
-- difference, is one number.
local time = redis.call('TIME')
local s, ns = tonumber(time[1]), tonumber(time[2]) * 1000

-- The backlog, below zero for a bucket that is full. Zero where the value is not a bucket.
local function backlog_of(key)
    local value = redis.call('GET', key)
    if value and #value > 9 and #value < 20 and not string.find(value, '%D') then
        return (tonumber(string.sub(value, 1, -10)) - s) * 1000000000 + (tonumber(string.sub(value, -9)) - ns)
    end
    return 0
end

local function write(key, backlog)
    local after = ns + backlog
    local carried = math.floor(after / 1000000000)
    local value = string.format('%.0f%09.0f', s + carried, after - carried * 1000000000)
    redis.call('SET', key, value, 'PX', string.format('%.0f', math.ceil(backlog / 1000000) + 1))
end

