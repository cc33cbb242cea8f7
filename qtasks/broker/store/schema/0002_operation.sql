-- Version 2: tokens, readiness, retention.

-- API tokens, by digest: no copy of the database reveals a token.

CREATE TABLE tokens (
    digest     BLOB    PRIMARY KEY CHECK (length(digest) = 32),
    account    INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    read_only  INTEGER NOT NULL CHECK (read_only IN (0, 1)),
    created_ms INTEGER NOT NULL,
    UNIQUE (account, name)
) STRICT, WITHOUT ROWID;

-- When the storage last accepted a write: `/readyz` tests it with this row.
CREATE TABLE probes (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    time_ms  INTEGER NOT NULL
) STRICT;

-- For retention: finished messages, oldest first, and the rows that belong to them.
CREATE INDEX messages_finished ON messages (stage, finished_ms) WHERE finished_ms IS NOT NULL;
CREATE INDEX dead_letters_by_message ON dead_letters (seq);
CREATE INDEX labels_by_message ON labels (seq);
