-- Refunds what was acquired, less what time has returned since (returning that too would admit more
-- than the quota), and charges cells whether or not they are there. KEYS: one for each bucket.
-- ARGV: when the cells were acquired (seconds and nanoseconds), then for each bucket the
-- nanoseconds to refund, the generation, the time of a cell, the burst, the arrival time after the
-- cells were acquired where requests wait in line (or nothing), the cells to charge, how long debts
-- may be beyond the burst, the count and the period of a quota that was chosen for the key (or
-- nothing), how long all pauses were until then, how long requests may wait, the boundaries of the
-- policy's windows around now (or nothing), and the start of the window in which the cells were
-- acquired. Returns when (seconds and nanoseconds).
local since = (s - tonumber(ARGV[1])) * 1000000000 + (us * 1000 - tonumber(ARGV[2]))
for i = 1, #KEYS do
    local n = 12 * i - 9
    -- Where now is not between the boundaries, the window that is next to it.
    local bucket = read(KEYS[i], window_of(ARGV[n + 10]))
    local added, cell, burst, arrival = tonumber(ARGV[n]), ARGV[n + 2], tonumber(ARGV[n + 3]), ARGV[n + 4]
    local cells, before = tonumber(ARGV[n + 5]), bucket.backlog
    local is_valid = bucket.generation == tonumber(ARGV[n + 1]) and bucket.from == tonumber(cell)
    -- Whoever waits has moved with the pauses since.
    local paused = max(0, bucket.paused - tonumber(ARGV[n + 8]))
    -- Where requests wait in line, only the last one is refunded.
    local is_last = arrival == '' or before <= burst * tonumber(cell)
    if is_valid and not is_last then
        is_last = arrival == bucket.arrives .. bucket.nanos
            or paused > 0 and left(arrival, s, us) + paused == before + bucket.pause
    end
    if is_valid and bucket.window then
        -- Whole in its window, and nothing after it.
        if bucket.starts == tonumber(ARGV[n + 11]) then bucket.backlog = max(0, before - added) end
    elseif is_valid and is_last then
        bucket.backlog = max(0, before - max(0, added - max(0, since + bucket.pause - paused)))
    end
    if cells > 0 then
        -- Another quota that has decided since stays: cells are cells.
        if bucket.backlog == 0 then
            bucket.cell, bucket.burst, bucket.plan = cell, ARGV[n + 3], ARGV[n + 7] ~= '' and ARGV[n + 7] or nil
        end
        local full = burst * tonumber(bucket.cell)
        -- Behind a line of those who wait, as far as the line may grow.
        local slack = tonumber(ARGV[bucket.backlog > full and n + 9 or n + 6])
        local furthest = full + max(full, slack)
        bucket.backlog = max(bucket.backlog, min(furthest, bucket.backlog + cells * tonumber(bucket.cell)))
    end
    if bucket.backlog ~= before or bucket.moved then write(KEYS[i], bucket) end
end
return { s, us * 1000 }
