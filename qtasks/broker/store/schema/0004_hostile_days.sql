-- Version 4: damage, clocks, growth.

-- A checksum over what changes in a message. NULL: no statement of this version has written the row yet.
ALTER TABLE messages ADD COLUMN state_sum INTEGER;

-- When a flow-control key was last used: keys that nobody uses are removed.
ALTER TABLE flow_keys ADD COLUMN used_ms INTEGER NOT NULL DEFAULT 0;
CREATE INDEX flow_keys_unused ON flow_keys (used_ms) WHERE paused = 0 AND pinned_parallelism = 0 AND pinned_rate = 0;
CREATE INDEX messages_with_flow_key ON messages (account, flow_key) WHERE flow_key IS NOT NULL AND finished_ms IS NULL;

-- The same for queues that nobody configured, and for URL prefixes.
ALTER TABLE queues ADD COLUMN used_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queues ADD COLUMN by_enqueue INTEGER NOT NULL DEFAULT 0;  -- 1: made by a first message, and never changed
CREATE INDEX queues_unused ON queues (used_ms) WHERE by_enqueue = 1;
ALTER TABLE prefixes ADD COLUMN used_ms INTEGER NOT NULL DEFAULT 0;
UPDATE prefixes SET used_ms = (SELECT coalesce(max(time_ms), 0) FROM log WHERE n = (SELECT max(n) FROM log));
CREATE INDEX prefixes_unused ON prefixes (used_ms);

-- Long answers in the log, oldest first: they are cut if the database is too large.
CREATE INDEX log_long_answers ON log (n) WHERE length(response_body) + length(response_head) > 1024;

-- The broker's own time (steady_clock.py): where it stood, and what to add to it for the wall time. Every other time is
-- one of the broker's, except those of cron expressions.
CREATE TABLE clock (
    only_row  INTEGER PRIMARY KEY CHECK (only_row = 1),
    time_ms   INTEGER NOT NULL,
    offset_ms INTEGER NOT NULL
) STRICT;

-- Starts at which more than a day had passed since the last known time: a long stop or a wrong clock, nobody can tell.
-- For retention each of them counts as one day.
CREATE TABLE clock_leaps (
    from_ms INTEGER PRIMARY KEY,
    to_ms   INTEGER NOT NULL CHECK (to_ms > from_ms)
) STRICT;

-- Ticks are kept for a while after they were stored, not after their own time: that one may be wrong by years.
ALTER TABLE ticks ADD COLUMN stored_ms INTEGER NOT NULL DEFAULT 0;
UPDATE ticks SET stored_ms = tick_ms;
CREATE INDEX ticks_by_age ON ticks (stored_ms);

-- The wall time (Unix seconds) before which a message must not start; NULL: its delay is a duration.
ALTER TABLE messages ADD COLUMN not_before_s INTEGER;
CREATE INDEX messages_at_wall_time ON messages (not_before_s) WHERE not_before_s IS NOT NULL AND stage = 1;
