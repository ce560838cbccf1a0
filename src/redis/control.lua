-- Does one thing to one bucket, for an operator, and announces it. KEYS: the bucket. ARGV: what,
-- the channel, the announcement, the boundaries of the policy's windows around now (or nothing),
-- then for a block or a ban its nanoseconds; for a pause these, and the policy; for a charge the
-- cells, the time of a cell and the burst of the policy's own quota, how long debts may be beyond
-- the burst, and how long requests may wait.
--
-- Returns when (seconds and nanoseconds), whether the bucket was used, blocked or paused before,
-- the backlog, the time of a cell that it is in, how long the key is blocked, the quota that was
-- chosen for the key (count, period and burst, or nothing), how long the key is paused, and how
-- long all pauses are. Where now is not between the boundaries, does nothing, and returns -1 and
-- when.
local what, announcement = ARGV[1], ARGV[3]
local window = window_of(ARGV[4])
if window and not window.known then return { -1, s, us * 1000 } end
local bucket = read(KEYS[1], window)
local was = bucket.backlog > 0 or bucket.block > 0 or bucket.ban > 0 or bucket.pause > 0
if what == 'pause' then
    local time = tonumber(ARGV[5])
    if time > bucket.pause then
        bucket.paused = bucket.paused + time - bucket.pause
        bucket.pause = time
    end
    announcement = announcement .. format(' %.0f %.0f ', bucket.pause, bucket.paused) .. ARGV[6]
end
if what == 'ban' then
    -- Where it is not permitted, others obey with their next call.
    redis.pcall('PUBLISH', ARGV[2], announcement)
elseif announcement ~= '' then
    -- First: where it is not permitted, nothing is written, and the operator hears so.
    redis.call('PUBLISH', ARGV[2], announcement)
end

if what == 'reset' then
    if was then
        bucket.backlog, bucket.block, bucket.ban, bucket.pause, bucket.paused = 0, 0, 0, 0, 0
        advance(bucket)
        write(KEYS[1], bucket)
    end
elseif what == 'block' then
    bucket.block = tonumber(ARGV[5])
    if bucket.block == 0 then bucket.ban = 0 end
    if was or bucket.block > 0 then write(KEYS[1], bucket) end
elseif what == 'ban' then
    bucket.ban = max(bucket.ban, tonumber(ARGV[5]))
    write(KEYS[1], bucket)
elseif what == 'pause' then
    if bucket.pause > 0 then write(KEYS[1], bucket) end
elseif what == 'charge' then
    local cells, cell, burst = tonumber(ARGV[5]), ARGV[6], ARGV[7]
    local used, plan = bucket.backlog > 0, nil
    if used and bucket.plan then
        -- The plan has the time of a cell that the bucket has.
        cell, burst, plan = bucket.cell, bucket.burst, bucket.plan
    end
    -- A slower quota charges cells of the faster one, and does not take over.
    local keeps = used and tonumber(cell) > bucket.from
    local backlog = bucket.backlog
    if not keeps then
        local to = tonumber(cell)
        backlog = convert(backlog, bucket.from or to, to)
        if bucket.from and bucket.from ~= to then advance(bucket) end
        bucket.cell, bucket.burst, bucket.plan = cell, burst, plan
    end
    local to = tonumber(bucket.cell)
    local full = tonumber(burst) * to
    -- Behind a line of those who wait, as far as the line may grow.
    local slack = tonumber(ARGV[backlog > full and 9 or 8])
    backlog = max(backlog, min(backlog + cells * to, full + max(full, slack)))
    bucket.backlog = backlog
    if backlog > 0 then write(KEYS[1], bucket) end
end
return {
    s, us * 1000, was and 1 or 0, bucket.backlog, bucket.cell or 0, max(bucket.block, bucket.ban),
    bucket.plan and bucket.plan .. ' ' .. bucket.burst or '', bucket.pause, bucket.paused
}
