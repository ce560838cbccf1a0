-- Refunds what was acquired, less what time has returned since (returning that too would admit more
-- than the quota), and charges cells whether or not they are there. KEYS: one for each bucket.
-- ARGV: when the cells were acquired (seconds and nanoseconds), then for each bucket the
-- nanoseconds to refund, the generation, the time of a cell, the burst, the arrival time after the
-- cells were acquired where requests wait in line (or nothing), the cells to charge, how long
-- requests may wait, and the count and the period of a quota that was chosen for the key (or
-- nothing). Returns when (seconds and nanoseconds).
local since = max(0, (s - tonumber(ARGV[1])) * 1000000000 + (us * 1000 - tonumber(ARGV[2])))
for i = 1, #KEYS do
    local n, bucket = 8 * i - 5, read(KEYS[i])
    local added, cell, burst, arrival = tonumber(ARGV[n]), ARGV[n + 2], tonumber(ARGV[n + 3]), ARGV[n + 4]
    local cells, before = tonumber(ARGV[n + 5]), bucket.backlog
    local is_valid = bucket.generation == tonumber(ARGV[n + 1]) and bucket.from == tonumber(cell)
    -- Where requests wait in line, only the last one is refunded.
    local is_last = arrival == '' or before <= burst * tonumber(cell) or arrival == bucket.arrives .. bucket.nanos
    if is_valid and is_last then
        bucket.backlog = max(0, before - max(0, added - since))
    end
    if cells > 0 then
        -- Another quota that has decided since stays: cells are cells.
        if bucket.backlog == 0 then
            bucket.cell, bucket.burst, bucket.plan = cell, ARGV[n + 3], ARGV[n + 7] ~= '' and ARGV[n + 7] or nil
        end
        local full = burst * tonumber(bucket.cell)
        local furthest = full + max(full, tonumber(ARGV[n + 6]))
        bucket.backlog = max(bucket.backlog, min(furthest, bucket.backlog + cells * tonumber(bucket.cell)))
    end
    if bucket.backlog ~= before or bucket.moved then write(KEYS[i], bucket) end
end
return { s, us * 1000 }
