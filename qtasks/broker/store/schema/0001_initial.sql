-- Version 1. Times are Unix milliseconds. Every key begins with `account`: so accounts stay apart.

CREATE TABLE accounts (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE signing_keys (
    account INTEGER PRIMARY KEY REFERENCES accounts (id),
    current TEXT NOT NULL CHECK (length(current) >= 8),
    next    TEXT NOT NULL CHECK (length(next) >= 8)
) STRICT;

-- One row for each message. `seq` is the order of acceptance. Bodies have a table of their own, because rows change often.
CREATE TABLE messages (
    seq              INTEGER PRIMARY KEY,
    account          INTEGER NOT NULL,
    id               TEXT    NOT NULL,
    stage            INTEGER NOT NULL CHECK (stage BETWEEN 1 AND 5 OR stage BETWEEN 10 AND 12),  -- from 10: finished
    due_ms           INTEGER NOT NULL,
    claim_token      INTEGER NOT NULL DEFAULT 0,
    retried          INTEGER NOT NULL DEFAULT 0 CHECK (retried >= 0),
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    finished_ms      INTEGER CHECK ((finished_ms IS NULL) = (stage < 10)),
    host             TEXT    NOT NULL,
    url              TEXT    NOT NULL,
    method           TEXT    NOT NULL,
    headers          TEXT    NOT NULL,           -- JSON [[name, value], ...] for the destination
    options          TEXT,                       -- JSON [[header, value], ...]: configuration without a column of its own
    created_ms       INTEGER NOT NULL,
    not_before_ms    INTEGER NOT NULL,
    max_retries      INTEGER NOT NULL CHECK (max_retries >= 0),
    timeout_ms       INTEGER NOT NULL CHECK (timeout_ms > 0),
    caller_ip        TEXT    NOT NULL,
    checksum         INTEGER NOT NULL,           -- CRC-32 over id, URL, headers, options and body: a damaged message is never sent
    queue            TEXT,
    slot             INTEGER NOT NULL DEFAULT 0 CHECK (slot = 0 OR (slot = 1 AND queue IS NOT NULL)),
                                                 -- 1: holds one of its queue's slots, until its callbacks have ended
    place            INTEGER,                    -- place in the line of its queue or flow-control key; NULL: it has not joined yet
    flow_key         TEXT,
    parent           INTEGER,                    -- callbacks: `seq` of the message that waits for this one
    open_callbacks   INTEGER NOT NULL DEFAULT 0 CHECK (open_callbacks >= 0),
    url_group        TEXT,
    endpoint         TEXT,
    schedule_id      TEXT
) STRICT;

CREATE UNIQUE INDEX messages_by_id ON messages (account, id);
CREATE INDEX messages_open ON messages (account, seq) WHERE finished_ms IS NULL;
-- Only messages that may start: a claim reads this index from its left end and stops.
CREATE INDEX messages_claimable ON messages (due_ms, seq) WHERE stage = 1;
CREATE INDEX messages_parked ON messages (host, due_ms, seq) WHERE stage = 2;
CREATE INDEX messages_active ON messages (seq) WHERE stage = 3;
-- The lines of messages that may not start: not in the claimable index; each line is read from its first message.
CREATE INDEX messages_queued ON messages (account, queue, place, seq) WHERE stage = 4 AND slot = 0;
CREATE INDEX messages_held ON messages (account, flow_key, place, seq) WHERE stage = 5;
-- Slots in use and attempts in flight are counted with these indices: no counter can drift.
CREATE INDEX messages_slots ON messages (account, queue) WHERE slot = 1;
CREATE INDEX messages_running ON messages (account, flow_key) WHERE stage = 3 AND flow_key IS NOT NULL;

CREATE TABLE bodies (
    seq  INTEGER PRIMARY KEY,
    body BLOB NOT NULL
) STRICT;

CREATE TABLE labels (
    label   TEXT    NOT NULL,
    account INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    place   INTEGER NOT NULL,
    PRIMARY KEY (account, label, seq)
) STRICT, WITHOUT ROWID;

-- The history of every message, append-only. `n` orders the entries of the whole store.
CREATE TABLE log (
    n               INTEGER PRIMARY KEY,
    seq             INTEGER NOT NULL,
    account         INTEGER NOT NULL,
    time_ms         INTEGER NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN
        ('CREATED', 'ACTIVE', 'RETRY', 'ERROR', 'DELIVERED', 'FAILED', 'CANCEL_REQUESTED', 'CANCELED')),
    error           TEXT,
    next_ms         INTEGER,
    response_status INTEGER,
    response_head   TEXT,
    response_body   BLOB
) STRICT;

CREATE INDEX log_by_message ON log (seq, n);
CREATE INDEX log_by_account ON log (account, n);

CREATE TABLE dead_letters (
    failed_ms       INTEGER NOT NULL,            -- with `n` the id that clients see: <failed_ms>-<n>
    n               INTEGER NOT NULL,
    account         INTEGER NOT NULL,
    seq             INTEGER NOT NULL,
    error           TEXT    NOT NULL,
    response_status INTEGER NOT NULL,            -- 0: there was no HTTP answer
    response_head   TEXT,
    response_body   BLOB,
    PRIMARY KEY (account, failed_ms, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE deduplication (
    account    INTEGER NOT NULL,
    key        TEXT    NOT NULL,
    message_id TEXT    NOT NULL,
    expires_ms INTEGER NOT NULL,
    PRIMARY KEY (account, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX deduplication_expiry ON deduplication (expires_ms);

CREATE TABLE queues (
    account     INTEGER NOT NULL,
    name        TEXT    NOT NULL,
    parallelism INTEGER NOT NULL CHECK (parallelism >= 1),
    paused      INTEGER NOT NULL CHECK (paused IN (0, 1)),
    created_ms  INTEGER NOT NULL,
    updated_ms  INTEGER NOT NULL,
    PRIMARY KEY (account, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE flow_keys (
    account            INTEGER NOT NULL,
    key                TEXT    NOT NULL,
    parallelism        INTEGER CHECK (parallelism >= 1),
    rate               INTEGER CHECK (rate >= 1),
    period_s           INTEGER NOT NULL DEFAULT 1 CHECK (period_s >= 1),
    pinned_parallelism INTEGER NOT NULL DEFAULT 0 CHECK (pinned_parallelism IN (0, 1)),
    pinned_rate        INTEGER NOT NULL DEFAULT 0 CHECK (pinned_rate IN (0, 1)),
    paused             INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
    window_start_ms    INTEGER NOT NULL DEFAULT 0,
    window_count       INTEGER NOT NULL DEFAULT 0,
    ready_ms           INTEGER,                  -- when the first message of the line may start; NULL: none waits, or none before something changes
    PRIMARY KEY (account, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX flow_keys_ready ON flow_keys (ready_ms) WHERE ready_ms IS NOT NULL;

CREATE TABLE url_groups (
    account    INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    headers    TEXT    NOT NULL,                 -- JSON [[name, value], ...]: defaults of every publish to the group
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (account, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE endpoints (
    account   INTEGER NOT NULL,
    url_group TEXT    NOT NULL,
    place     INTEGER NOT NULL,
    name      TEXT,
    url       TEXT    NOT NULL,
    PRIMARY KEY (account, url_group, place),
    FOREIGN KEY (account, url_group) REFERENCES url_groups (account, name) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE schedules (
    account     INTEGER NOT NULL,
    id          TEXT    NOT NULL,
    destination TEXT    NOT NULL,
    cron        TEXT    NOT NULL,
    options     TEXT    NOT NULL,                -- JSON [[header, value], ...] as sent at its creation
    body        BLOB    NOT NULL,
    caller_ip   TEXT    NOT NULL,
    created_ms  INTEGER NOT NULL,
    paused      INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
    next_ms     INTEGER,                         -- NULL: the expression has no further run
    last_ms     INTEGER,
    last_run    TEXT    NOT NULL DEFAULT '[]',   -- JSON: ids of the messages of the last run
    error       TEXT,
    PRIMARY KEY (account, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX schedules_due ON schedules (next_ms) WHERE paused = 0 AND next_ms IS NOT NULL;

-- Every tick of a schedule once, even if the clock is set back: the primary key refuses a second row.
CREATE TABLE ticks (
    account  INTEGER NOT NULL,
    schedule TEXT    NOT NULL,
    tick_ms  INTEGER NOT NULL,
    outcome  TEXT    NOT NULL CHECK (outcome IN ('FIRED', 'MISSED', 'FAILED')),
    PRIMARY KEY (account, schedule, tick_ms)
) STRICT, WITHOUT ROWID;
