-- Sets the quotas of policies, for all processes, and announces it. KEYS: the hash of what an
-- operator says. ARGV: the channel, the announcement, then fields and values.
redis.call('PUBLISH', ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
return 0
