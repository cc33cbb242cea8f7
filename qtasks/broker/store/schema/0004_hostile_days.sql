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

-- The numbers that change in a message have a sum of their own (verbs/sums.py). A statement adds to it what it changes:
-- so it need not know of it, and damage that was there before still shows. Some do this themselves: that is quicker.
-- A message of an earlier release gets its sum with its first change.
CREATE TRIGGER messages_state_sum AFTER UPDATE OF
    stage, due_ms, claim_token, retried, cancel_requested, finished_ms, slot, place, open_callbacks,
    interrupted_since_ms, cuts, noted_ms, quiet, open_claims
ON messages WHEN NEW.state_sum IS OLD.state_sum AND (OLD.state_sum IS NOT NULL OR OLD.checksum < 4294967296)
BEGIN
    UPDATE messages SET state_sum = ((coalesce(OLD.state_sum % 2147483647,
        coalesce(OLD.stage, -1) % 2147483647 * 33554393
        + coalesce(OLD.due_ms, -1) % 2147483647 * 30146531
        + coalesce(OLD.claim_token, -1) % 2147483647 * 28462003
        + coalesce(OLD.retried, -1) % 2147483647 * 25165813
        + coalesce(OLD.cancel_requested, -1) % 2147483647 * 23068673
        + coalesce(OLD.finished_ms, -1) % 2147483647 * 20971529
        + coalesce(OLD.slot, -1) % 2147483647 * 19922943
        + coalesce(OLD.place, -1) % 2147483647 * 18874379
        + coalesce(OLD.open_callbacks, -1) % 2147483647 * 16777259
        + coalesce(OLD.interrupted_since_ms, -1) % 2147483647 * 15728681
        + coalesce(OLD.cuts, -1) % 2147483647 * 14680067
        + coalesce(OLD.noted_ms, -1) % 2147483647 * 13631489
        + coalesce(OLD.quiet, -1) % 2147483647 * 12582917
        + coalesce(OLD.open_claims, -1) % 2147483647 * 11534351
    )
        + (coalesce(NEW.stage, -1) % 2147483647 - coalesce(OLD.stage, -1) % 2147483647) * 33554393
        + (coalesce(NEW.due_ms, -1) % 2147483647 - coalesce(OLD.due_ms, -1) % 2147483647) * 30146531
        + (coalesce(NEW.claim_token, -1) % 2147483647 - coalesce(OLD.claim_token, -1) % 2147483647) * 28462003
        + (coalesce(NEW.retried, -1) % 2147483647 - coalesce(OLD.retried, -1) % 2147483647) * 25165813
        + (coalesce(NEW.cancel_requested, -1) % 2147483647 - coalesce(OLD.cancel_requested, -1) % 2147483647) * 23068673
        + (coalesce(NEW.finished_ms, -1) % 2147483647 - coalesce(OLD.finished_ms, -1) % 2147483647) * 20971529
        + (coalesce(NEW.slot, -1) % 2147483647 - coalesce(OLD.slot, -1) % 2147483647) * 19922943
        + (coalesce(NEW.place, -1) % 2147483647 - coalesce(OLD.place, -1) % 2147483647) * 18874379
        + (coalesce(NEW.open_callbacks, -1) % 2147483647 - coalesce(OLD.open_callbacks, -1) % 2147483647) * 16777259
        + (coalesce(NEW.interrupted_since_ms, -1) % 2147483647 - coalesce(OLD.interrupted_since_ms, -1) % 2147483647) * 15728681
        + (coalesce(NEW.cuts, -1) % 2147483647 - coalesce(OLD.cuts, -1) % 2147483647) * 14680067
        + (coalesce(NEW.noted_ms, -1) % 2147483647 - coalesce(OLD.noted_ms, -1) % 2147483647) * 13631489
        + (coalesce(NEW.quiet, -1) % 2147483647 - coalesce(OLD.quiet, -1) % 2147483647) * 12582917
        + (coalesce(NEW.open_claims, -1) % 2147483647 - coalesce(OLD.open_claims, -1) % 2147483647) * 11534351
    ) % 2147483647 + 2147483647) % 2147483647 WHERE seq = NEW.seq;
END;

-- A body that consecutive messages have in common, as those of a URL group have, is stored once. `bodies` shows the body
-- of every message, wherever it is stored.
ALTER TABLE bodies RENAME TO stored_bodies;
ALTER TABLE stored_bodies ADD COLUMN shared INTEGER;  -- `first` of its shared body; `body` is empty then
CREATE TABLE shared_bodies (
    first INTEGER PRIMARY KEY,                   -- `seq` of the first and of the last message that have it in common
    last  INTEGER NOT NULL,
    body  BLOB    NOT NULL
) STRICT;

CREATE VIEW bodies (seq, body) AS
SELECT seq, CASE WHEN shared IS NULL THEN body ELSE (SELECT s.body FROM shared_bodies s WHERE s.first = shared) END
FROM stored_bodies;

-- The last message to go takes the shared body along. A message that has got a `seq` in between only delays this.
CREATE TRIGGER shared_bodies_unused AFTER DELETE ON stored_bodies WHEN old.shared IS NOT NULL
BEGIN
    DELETE FROM shared_bodies WHERE first = old.shared AND NOT EXISTS (
        SELECT 1 FROM stored_bodies b WHERE b.seq BETWEEN shared_bodies.first AND shared_bodies.last
    );
END;
