-- Version 6: what the console shows. All of it is derived from the log, in the order of its entries (verbs/insight), and
-- can be made again from it: it is never the truth.

-- How far the log is counted: everything up to entry `n` is in the tables below, and nothing after it.
CREATE TABLE insight_progress (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    n        INTEGER NOT NULL
) STRICT;
INSERT INTO insight_progress (only_row, n) VALUES (1, 0);

-- Where messages go. The figures of an account's destinations beyond some thousand are counted together.
CREATE TABLE insight_destinations (
    id         INTEGER PRIMARY KEY,
    account    INTEGER NOT NULL,
    url        TEXT    NOT NULL,                 -- without its query; empty: all those that are counted together
    is_task    INTEGER NOT NULL CHECK (is_task IN (0, 1)),
    task       TEXT,                             -- the last segment of the path, for messages of the framework
    counted_as INTEGER NOT NULL,                 -- the destination that its figures belong to, mostly itself
    UNIQUE (account, url, is_task)
) STRICT;

-- For the search: one row for each message that the log has told of. `status`: core/observed/statuses.py.
CREATE TABLE insight_messages (
    seq         INTEGER PRIMARY KEY,
    account     INTEGER NOT NULL,
    destination INTEGER NOT NULL,
    status      INTEGER NOT NULL CHECK (status BETWEEN 1 AND 8),
    due_ms      INTEGER NOT NULL,                -- when its next attempt was due
    started_ms  INTEGER                          -- when its last attempt began
) STRICT;

CREATE INDEX insight_messages_by_status ON insight_messages (account, status, seq);
CREATE INDEX insight_messages_by_destination ON insight_messages (account, destination, status, seq);
CREATE INDEX insight_messages_waiting ON insight_messages (account, status, due_ms, destination) WHERE status <= 2;

-- How many messages have a status, but for those that ended well or were cancelled.
CREATE TABLE insight_counts (
    account     INTEGER NOT NULL,
    destination INTEGER NOT NULL,
    status      INTEGER NOT NULL,
    count       INTEGER NOT NULL,
    PRIMARY KEY (account, destination, status)
) STRICT, WITHOUT ROWID;

-- What happened in a minute, an hour, or ever (step 0), by destination; destination 0 is all of an account.
CREATE TABLE insight_spans (
    account     INTEGER NOT NULL,
    step_ms     INTEGER NOT NULL,
    destination INTEGER NOT NULL,
    start_ms    INTEGER NOT NULL,
    created     INTEGER NOT NULL,
    delivered   INTEGER NOT NULL,
    failed      INTEGER NOT NULL,
    retried     INTEGER NOT NULL,
    durations   BLOB    NOT NULL,                -- histograms: core/observed/histograms.py
    waits       BLOB    NOT NULL,
    PRIMARY KEY (account, step_ms, destination, start_ms)
) STRICT, WITHOUT ROWID;

CREATE INDEX insight_spans_by_age ON insight_spans (step_ms, start_ms);

-- Failed attempts, grouped by destination and error.
CREATE TABLE insight_failures (
    id          INTEGER PRIMARY KEY,
    account     INTEGER NOT NULL,
    fingerprint TEXT    NOT NULL,
    destination INTEGER NOT NULL,
    error       TEXT    NOT NULL,                -- of its last attempt, as it was
    pattern     TEXT    NOT NULL,                -- what all of its errors have in common
    first_ms    INTEGER NOT NULL,
    last_ms     INTEGER NOT NULL,
    sample      INTEGER NOT NULL,                -- `seq` of the message of its last attempt
    UNIQUE (account, fingerprint)
) STRICT;

CREATE INDEX insight_failures_by_time ON insight_failures (account, last_ms);

CREATE TABLE insight_failure_spans (
    failure  INTEGER NOT NULL,
    start_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    messages INTEGER NOT NULL,                   -- those of which it was the first attempt with this failure
    PRIMARY KEY (failure, start_ms)
) STRICT, WITHOUT ROWID;

CREATE INDEX insight_failure_spans_by_age ON insight_failure_spans (start_ms);

CREATE TABLE insight_failure_messages (
    failure INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    is_last INTEGER NOT NULL CHECK (is_last IN (0, 1)),  -- 1: the message failed with it for good
    PRIMARY KEY (failure, seq)
) STRICT, WITHOUT ROWID;

CREATE INDEX insight_failure_messages_by_message ON insight_failure_messages (seq);

-- A dead letter goes without an entry in the log, and a message may be removed before its last entry is counted.
CREATE TRIGGER insight_dead_letter_gone AFTER DELETE ON dead_letters
BEGIN
    UPDATE insight_counts SET count = count - 1
    WHERE (account, destination, status) = (
        SELECT m.account, d.counted_as, m.status FROM insight_messages m JOIN insight_destinations d ON d.id = m.destination
        WHERE m.seq = old.seq AND m.status = 7
    );
    UPDATE insight_messages SET status = 6 WHERE seq = old.seq AND status = 7;
END;

CREATE TRIGGER insight_message_gone AFTER DELETE ON insight_messages WHEN old.status <= 4 OR old.status = 7
BEGIN
    UPDATE insight_counts SET count = count - 1
    WHERE account = old.account AND status = old.status
      AND destination = (SELECT counted_as FROM insight_destinations WHERE id = old.destination);
END;
