-- Acquires the cells of as many requests as wanted from each bucket, or of as many as all buckets
-- grant. KEYS: one for each bucket. ARGV: the number of requests, then for each bucket the
-- nanoseconds that a request costs, those of the whole burst, and 1 for shadow mode. Returns how
-- many requests are granted, when (seconds and nanoseconds), and the backlog of each bucket before.
local granted = tonumber(ARGV[1])
local backlogs, reply, clamped = {}, {}, {}

for i = 1, #KEYS do
    local cost, burst, shadow = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), ARGV[3 * i + 1] == '1'
    local backlog = math.max(0, backlog_of(KEYS[i]))
    if backlog > burst then
        -- The server's clock has stepped back.
        backlog = burst
        clamped[i] = true
    end
    backlogs[i] = backlog
    reply[i + 3] = backlog
    if cost > 0 and not shadow then
        local fits = math.floor((burst - backlog) / cost)
        if fits < granted then granted = fits end
    end
end

for i = 1, #KEYS do
    local cost, burst = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
    local requests = 0
    -- A bucket in shadow mode may have less left than the others.
    if cost > 0 then requests = math.min(granted, math.floor((burst - backlogs[i]) / cost)) end
    if requests > 0 then
        write(KEYS[i], backlogs[i] + requests * cost)
    elseif clamped[i] then
        write(KEYS[i], backlogs[i])
    end
end
reply[1], reply[2], reply[3] = granted, s, ns
return reply
