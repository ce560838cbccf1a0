-- Draws as many units as wanted from each bucket, or as many as all of them have.
-- KEYS: one for each limit. ARGV: how many are wanted, then for each limit: the nanoseconds of a unit, those of the whole burst,
-- and 1 if the limit only watches. Returns how many were drawn, when (seconds and nanoseconds), and the nanoseconds that each
-- bucket owed before.
local drawn = tonumber(ARGV[1])
local owed, reply, cut = {}, {}, {}

for i = 1, #KEYS do
    local unit, burst, watches = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), ARGV[3 * i + 1] == '1'
    local left = math.max(0, owed_in(KEYS[i]))
    if left > burst then
        -- The server's clock has stepped back.
        left = burst
        cut[i] = true
    end
    owed[i] = left
    reply[i + 3] = left
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
        write(KEYS[i], owed[i] + units * unit)
    elseif cut[i] then
        write(KEYS[i], owed[i])
    end
end
reply[1], reply[2], reply[3] = drawn, s, ns
return reply
