-- Version 3: the calls of the framework: by their own id, with the callback of their end, and with interruptions.

ALTER TABLE messages ADD COLUMN call_id TEXT;
ALTER TABLE messages ADD COLUMN end_callback TEXT;
ALTER TABLE messages ADD COLUMN interrupted_for_ms INTEGER;          -- NULL: every attempt counts, as for QStash
CREATE INDEX messages_by_call ON messages (account, call_id) WHERE call_id IS NOT NULL;

-- Where a due message waits while it may not start: by host, or by URL prefix (core/lots.py).
ALTER TABLE messages ADD COLUMN lot TEXT NOT NULL DEFAULT '';
UPDATE messages SET lot = host WHERE finished_ms IS NULL;
DROP INDEX messages_parked;
CREATE INDEX messages_parked ON messages (lot, due_ms, seq) WHERE stage = 2;

-- Interruptions of a message since an attempt of it counted.
ALTER TABLE messages ADD COLUMN interrupted_since_ms INTEGER;        -- NULL: it was not interrupted
ALTER TABLE messages ADD COLUMN cuts INTEGER NOT NULL DEFAULT 0;     -- how many of them cut a run
ALTER TABLE messages ADD COLUMN noted_ms INTEGER;                    -- when the log last got one
ALTER TABLE messages ADD COLUMN quiet INTEGER NOT NULL DEFAULT 0;    -- 1: the log has no entry for the attempt in flight
ALTER TABLE messages ADD COLUMN open_claims INTEGER NOT NULL DEFAULT 0;  -- claims since the last outcome of an attempt

-- URL prefixes that a dispatcher has answered from, or that refuse.
CREATE TABLE prefixes (
    lot           TEXT    PRIMARY KEY,
    dispatcher    INTEGER NOT NULL DEFAULT 0 CHECK (dispatcher IN (0, 1)),  -- 1: an answer came from a dispatcher
    down_since_ms INTEGER,                       -- NULL: it does not refuse
    probe_ms      INTEGER,                       -- when the next probe may start
    probes        INTEGER NOT NULL DEFAULT 1     -- how many messages may start then
) STRICT, WITHOUT ROWID;

CREATE INDEX prefixes_down ON prefixes (probe_ms) WHERE down_since_ms IS NOT NULL;
