-- Draws as many units as wanted from each bucket, or as many as all of them have.
-- KEYS: one for each limit. ARGV: how many are wanted, then for each limit: the nanoseconds of a unit, those of the whole burst,
-- and 1 if the limit only watches. Returns how many were drawn, and the nanoseconds that each bucket owed before.
-- A value is an arrival time in nanoseconds since 1970, of digits: as a Lua number it would lose the last ones.
local time = redis.call('TIME')
local s, ns = tonumber(time[1]), tonumber(time[2]) * 1000
local drawn = tonumber(ARGV[1])
local owed, reply, cut = {}, {}, {}

local function write(i, nanos)
    local after = ns + nanos
    local carried = math.floor(after / 1000000000)
    local value = string.format('%.0f%09.0f', s + carried, after - carried * 1000000000)
    redis.call('SET', KEYS[i], value, 'PX', string.format('%.0f', math.ceil(nanos / 1000000) + 1))
end

for i = 1, #KEYS do
    local unit, burst, watches = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), ARGV[3 * i + 1] == '1'
    local value = redis.call('GET', KEYS[i])
    local left = 0
    -- What else stands there is not ours, or was written by a fault: as good as nothing.
    if value and #value > 9 and #value < 20 and not string.find(value, '%D') then
        left = (tonumber(string.sub(value, 1, -10)) - s) * 1000000000 + (tonumber(string.sub(value, -9)) - ns)
        if left < 0 then left = 0 end
        if left > burst then
            -- The server's clock has stepped back.
            left = burst
            cut[i] = true
        end
    end
    owed[i] = left
    reply[i + 1] = left
    if unit > 0 and not watches then
        local fits = math.floor((burst - left) / unit)
        if fits < drawn then drawn = fits end
    end
end

for i = 1, #KEYS do
    local unit, burst = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
    local units = 0
    -- A limit that only watches may have fewer than the others.
    if unit > 0 then units = math.min(drawn, math.floor((burst - owed[i]) / unit)) end
    if units > 0 then
        write(i, owed[i] + units * unit)
    elseif cut[i] then
        write(i, owed[i])
    end
end
reply[1] = drawn
return reply
