-- Version 10: what operators do.

-- One row for each change that a person or a program asked for, but for publishes. `n` orders the rows of the whole store.
CREATE TABLE audit (
    n          INTEGER PRIMARY KEY,
    account    INTEGER NOT NULL,
    time_ms    INTEGER NOT NULL,
    who        TEXT    NOT NULL,                 -- the name of the token, or what the console in an application tells
    origin     TEXT    NOT NULL CHECK (origin IN ('api', 'console', 'command line')),
    what       TEXT    NOT NULL,                 -- such as queue.pause
    subject    TEXT    NOT NULL,                 -- the id or the name of what was changed, or the filter that chose it
    is_payload INTEGER NOT NULL CHECK (is_payload IN (0, 1)),  -- 1: the subject may hold values of messages
    how_many   INTEGER NOT NULL CHECK (how_many >= 0),         -- things that were changed
    note       TEXT
) STRICT;

CREATE INDEX audit_by_account ON audit (account, n);

-- Since when something is paused, by whom and why. That it is paused is a fact of its own table.
CREATE TABLE pauses (
    account   INTEGER NOT NULL,
    kind      TEXT    NOT NULL CHECK (kind IN ('queue', 'flow key', 'schedule')),
    name      TEXT    NOT NULL,
    paused_ms INTEGER NOT NULL,
    who       TEXT    NOT NULL,
    note      TEXT,
    PRIMARY KEY (account, kind, name)
) STRICT, WITHOUT ROWID;

-- When a token was last used, noted once a minute at most. NULL: never, or before this version.
ALTER TABLE tokens ADD COLUMN used_ms INTEGER;
