-- Acquires the cells of as many requests as wanted from each bucket, or of as many as all buckets
-- grant. KEYS: one for each bucket. ARGV: the number of requests, then for each bucket the cells of
-- a request, the time of a cell, the burst, how long requests may wait, the count and the period of
-- a quota that was chosen for the key (or nothing), 1 for shadow mode, and the boundaries of the
-- policy's windows around now (or nothing).
--
-- Returns how many requests are granted, when (seconds and nanoseconds), and for each bucket its
-- backlog before, the time of a cell that this backlog is in (0: that of the request), how long the
-- key is blocked, and the generation. Then, for each bucket that was decided by the quota that was
-- chosen for the key before, the number of the bucket, and count, period, burst and time of a cell.
-- Then, for each bucket with a pause, its number below zero, how long the pause lasts, and how long
-- all pauses together.
--
-- Where now is not between the boundaries, does nothing, and returns -1 and when.
local granted = tonumber(ARGV[1])
local asked, more = {}, nil
-- With places for one bucket: a table that grows costs more.
local reply = { 0, s, us * 1000, 0, 0, 0, 0 }

local windows = {}
for i = 1, #KEYS do
    windows[i] = window_of(ARGV[7 * i + 1])
    if windows[i] and not windows[i].known then return { -1, s, us * 1000 } end
end

for i = 1, #KEYS do
    local n, bucket = 7 * i - 5, read(KEYS[i], windows[i])
    local cells, cell, burst, plan = tonumber(ARGV[n]), ARGV[n + 1], ARGV[n + 2], ARGV[n + 4]
    if plan == '' then
        plan = nil
        if bucket.plan and bucket.backlog > 0 then
            -- Who says no quota has the one that was chosen for the key.
            cell, burst, plan = bucket.cell, bucket.burst, bucket.plan
            more = more or {}
            more[#more + 1] = i
            more[#more + 1] = plan .. ' ' .. burst .. ' ' .. cell
        end
    end
    if bucket.paused > 0 then
        more = more or {}
        more[#more + 1] = -i
        more[#more + 1] = format('%.0f %.0f', bucket.pause, bucket.paused)
    end
    local to, shadow = tonumber(cell), ARGV[n + 5] == '1'
    local from = bucket.from or to
    local backlog = convert(bucket.backlog, from, to)
    local ask = {
        bucket = bucket, cell = cell, burst = burst, plan = plan, shadow = shadow, cost = cells * to,
        backlog = backlog, converts = from ~= to, fits = 0, takes_over = false
    }
    local patient = 0
    if cells > 0 and cells <= tonumber(burst) then
        local free = tonumber(burst) * to - backlog
        ask.fits = max(0, floor(free / ask.cost))
        -- A slower quota that denies leaves the bucket to its faster one.
        ask.takes_over = ask.fits == 0 and to < from
        local patience = tonumber(ARGV[n + 3]) - bucket.pause
        if patience >= 0 then patient = max(0, floor((free + patience) / ask.cost)) end
        if bucket.pause > 0 then ask.fits = 0 end
    end
    local blocked = max(bucket.block, bucket.ban)
    if not shadow then
        if cells > 0 and patient < granted then granted = patient end
        if blocked > 0 then granted = 0 end
    end
    asked[i] = ask
    reply[4 * i], reply[4 * i + 1] = bucket.backlog, ask.converts and bucket.cell or 0
    reply[4 * i + 2], reply[4 * i + 3] = blocked, 0
end

for i = 1, #KEYS do
    local ask = asked[i]
    local bucket, requests = ask.bucket, 0
    -- A bucket in shadow mode may have less left than the others.
    if ask.cost > 0 then requests = ask.shadow and min(granted, ask.fits) or granted end
    if requests > 0 or ask.takes_over then
        if ask.converts then advance(bucket) end
        bucket.backlog = ask.backlog + requests * ask.cost
        bucket.cell, bucket.burst, bucket.plan = ask.cell, ask.burst, ask.plan
        write(KEYS[i], bucket)
    elseif bucket.moved then
        write(KEYS[i], bucket)
    end
    reply[4 * i + 3] = bucket.generation
end
reply[1] = granted
if more then
    for i = 1, #more do reply[#reply + 1] = more[i] end
end
return reply
