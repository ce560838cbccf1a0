-- Returns what was drawn, less what time has returned since: to return it again would admit more than the quota.
-- KEYS: one for each limit. ARGV: when it was drawn (seconds and nanoseconds), then for each limit the nanoseconds.
local since = (s - tonumber(ARGV[1])) * 1000000000 + (ns - tonumber(ARGV[2]))
for i = 1, #KEYS do
    local owed = owed_in(KEYS[i])
    local left = tonumber(ARGV[i + 2]) - math.max(0, since)
    if owed > 0 and left > 0 then
        write(KEYS[i], math.max(0, owed - left))
    end
end
return 0
