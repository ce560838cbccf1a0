-- A bucket is text: "ARRIVAL WRITTEN GENERATION CELL", and then, as far as there are such,
-- " pCOUNT PERIOD BURST" (the quota that was chosen for the key), " bEND" (a block), " nEND" (a
-- ban), " sEND TOTAL" (a pause, and the nanoseconds of all pauses), " wEND" (of a window, and when
-- it ends, in seconds: the arrival time is its start, and a nanosecond for each cell that is used).
-- The arrival time and the ends are in nanoseconds since 1970: a Lua number would lose the last
-- digits, so only differences are numbers here. WRITTEN and GENERATION are in microseconds since
-- 1970, which are exact. CELL, PERIOD and TOTAL are nanoseconds.
--
-- In a pause nothing comes back: the arrival time is that much later, and the backlog is the one at
-- its end.
local floor, max, min = math.floor, math.max, math.min
local format, match = string.format, string.match
local time = redis.call('TIME')
local s, us = tonumber(time[1]), tonumber(time[2])
local now = s * 1000000 + us

-- The time from a moment, in seconds and microseconds, until then; below zero where it is over.
local function left(digits, seconds, micros)
    local rest = tonumber(string.sub(digits, -9)) - micros * 1000
    return (tonumber(string.sub(digits, 1, -10)) - seconds) * 1000000000 + rest
end

-- The end of so long a time: seconds, and nanoseconds.
local function after(nanos)
    local ends = us * 1000 + nanos
    local carried = floor(ends / 1000000000)
    return s + carried, max(0, min(999999999, ends - carried * 1000000000))
end

-- The window of now, or the nearest to it: start and end in seconds, of the four boundaries that
-- the process knows. Where now is not between them, the clocks differ by more than a window.
local function window_of(boundaries)
    if boundaries == '' then return nil end
    local first, second, third, last = match(boundaries, '^(%d+) (%d+) (%d+) (%d+)$')
    first, second, third, last = tonumber(first), tonumber(second), tonumber(third), tonumber(last)
    local known = s >= first and s < last
    if s >= third then return { starts = third, ends = last, known = known } end
    if s >= second then return { starts = second, ends = third, known = known } end
    return { starts = first, ends = second, known = known }
end

-- An empty value, and one that is not a bucket, are full buckets. So is one of a rate in a window,
-- and the reverse. What is used of a window is counted from its start, or from the bucket's own
-- where that is later, because a clock has stepped back.
local function read(key, window)
    local value = redis.call('GET', key)
    local arrives, nanos, written, generation, cell, more
    if value then
        arrives, nanos, written, generation, cell, more =
            match(value, '^(%d+)(%d%d%d%d%d%d%d%d%d) (%d+) (%d+) ([1-9]%d*)(.*)$')
    end
    if not arrives or #arrives > 10 then
        return { backlog = 0, block = 0, ban = 0, pause = 0, paused = 0, generation = now, window = window }
    end
    -- Where the clock has stepped back, everything lasts as long as it did when it was written. By
    -- the time of now, a large step would lose the last digits.
    local at_s, at_us, moved = s, us, tonumber(written) > now
    if moved then
        at_s = floor(tonumber(written) / 1000000)
        at_us = tonumber(written) - at_s * 1000000
    end
    local backlog = (tonumber(arrives) - at_s) * 1000000000 + (tonumber(nanos) - at_us * 1000)
    local bucket = {
        backlog = max(0, backlog), block = 0, ban = 0, generation = tonumber(generation), cell = cell,
        from = tonumber(cell), moved = moved, arrives = arrives, nanos = nanos, pause = 0, paused = 0,
        window = window
    }
    if more ~= '' then
        bucket.plan, bucket.burst = match(more, ' p([1-9]%d* [1-9]%d*) ([1-9]%d*)')
        local block, ban = match(more, ' b(%d%d%d%d%d%d%d%d%d%d+)'), match(more, ' n(%d%d%d%d%d%d%d%d%d%d+)')
        if block then bucket.block = max(0, left(block, at_s, at_us)) end
        if ban then bucket.ban = max(0, left(ban, at_s, at_us)) end
        local stop, total = match(more, ' s(%d%d%d%d%d%d%d%d%d%d+) (%d+)')
        if stop then
            bucket.pause = max(0, left(stop, at_s, at_us))
            bucket.backlog = max(0, backlog - bucket.pause)
            -- The total is for those who wait, and then something is used.
            if bucket.pause > 0 or bucket.backlog > 0 then bucket.paused = tonumber(total) end
        end
    end
    local ends = tonumber(match(more, ' w(%d+)'))
    if window and ends then
        local own = tonumber(arrives) - tonumber(arrives) % 60
        bucket.starts = max(window.starts, own)
        bucket.backlog = (tonumber(arrives) - own) * 1000000000 + tonumber(nanos)
        if own < window.starts and ends <= s then
            bucket.backlog = 0
        elseif own < window.starts or ends < window.ends then
            -- By another calendar, whose window still lasts: what was used is used in this one.
            bucket.moved = true
        end
    end
    if (ends ~= nil) ~= (window ~= nil) then
        bucket.backlog, bucket.cell, bucket.from, bucket.plan, bucket.burst = 0, nil, nil, nil, nil
        bucket.starts = window and window.starts
    end
    return bucket
end

local function write(key, bucket)
    -- 146 years: a later time has more digits than a bucket.
    bucket.backlog = min(bucket.backlog, 4611686018427387904)
    local lasts = bucket.backlog > 0 and bucket.pause + bucket.backlog or 0
    local seconds, nanos = after(lasts)
    local window, ends = bucket.window, 0
    if window then
        local starts = bucket.starts or window.starts
        seconds = starts + floor(bucket.backlog / 1000000000)
        nanos = bucket.backlog % 1000000000
        -- The end of a window that is ahead is not known: two of its length are enough.
        ends = starts > window.starts and starts + 2 * (window.ends - window.starts) or window.ends
        lasts = bucket.backlog > 0 and (ends - s) * 1000000000 - us * 1000 or 0
    end
    local value =
        format('%.0f%09.0f %.0f %.0f %s', seconds, nanos, now, bucket.generation, bucket.cell or '1')
    if bucket.plan then value = value .. ' p' .. bucket.plan .. ' ' .. bucket.burst end
    if window then value = value .. format(' w%.0f', ends) end
    lasts = max(lasts, bucket.pause)
    if bucket.paused > 0 then
        seconds, nanos = after(bucket.pause)
        value = value .. format(' s%.0f%09.0f %.0f', seconds, nanos, bucket.paused)
    end
    if bucket.block > 0 then
        value = value .. format(' b%.0f%09.0f', after(bucket.block))
        lasts = max(lasts, bucket.block)
    end
    if bucket.ban > 0 then
        value = value .. format(' n%.0f%09.0f', after(bucket.ban))
        lasts = max(lasts, bucket.ban)
    end
    redis.call('SET', key, value, 'PX', format('%.0f', math.ceil(lasts / 1000000) + 1))
end

-- Makes earlier receipts void.
local function advance(bucket)
    bucket.generation = max(now, bucket.generation + 1)
end

-- As many cells as `backlog` is at `from` each, at `to` each. A part of a cell is rounded up.
local function convert(backlog, from, to)
    if backlog == 0 or from == to then return backlog end
    local whole = floor(backlog / from)
    local rest = backlog - whole * from
    local part = rest * to
    if part < 9007199254740992 then
        part = math.ceil(part / from)
    else
        -- A product of whole numbers below 2^53, as two numbers whose sum it is exactly.
        local function product(a, b)
            local p = a * b
            local ca, cb = 134217729 * a, 134217729 * b
            local ah, bh = ca - (ca - a), cb - (cb - b)
            local al, bl = a - ah, b - bh
            return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl
        end
        local high, low = product(rest, to)
        part = floor(part / from)
        local product_high, product_low = product(part, from)
        local missing = (high - product_high) + (low - product_low)
        while missing > 0 do part, missing = part + 1, missing - from end
        while missing <= -from do part, missing = part - 1, missing + from end
    end
    return whole * to + part
end

