-- Refunds what was acquired, less what time has returned since (returning that too would admit more
-- than the quota), and charges cells whether or not they are there, up to the burst. KEYS: one for
-- each bucket. ARGV: when the cells were acquired (seconds and nanoseconds), then for each bucket
-- the nanoseconds to refund, those to charge, and those of the whole burst.
local since = (s - tonumber(ARGV[1])) * 1000000000 + (ns - tonumber(ARGV[2]))
for i = 1, #KEYS do
    local refund, charge, burst = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
    local backlog = math.max(0, backlog_of(KEYS[i]))
    local left = math.max(0, backlog - math.max(0, refund - math.max(0, since)))
    -- A charge never lessens a backlog, which is longer than a burst where the clock has stepped
    -- back.
    left = math.max(left, math.min(burst, left + charge))
    if left ~= backlog then write(KEYS[i], left) end
end
return 0
