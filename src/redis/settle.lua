-- Returns what was drawn, less what time has returned since (to return it again would admit more than the quota), and charges
-- what is to be charged, whether or not it is there, up to the burst.
-- KEYS: one for each limit. ARGV: when it was drawn (seconds and nanoseconds), then for each limit the nanoseconds to return,
-- those to charge, and those of the whole burst.
local since = (s - tonumber(ARGV[1])) * 1000000000 + (ns - tonumber(ARGV[2]))
for i = 1, #KEYS do
    local returned, charged, burst = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
    local owed = math.max(0, owed_in(KEYS[i]))
    local left = math.max(0, owed - math.max(0, returned - math.max(0, since)))
    -- What is owed under a clock that has stepped back is not made less by a charge.
    left = math.max(left, math.min(burst, left + charged))
    if left ~= owed then write(KEYS[i], left) end
end
return 0
