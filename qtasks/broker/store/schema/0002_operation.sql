-- Version 2: tokens, readiness, retention.

-- API tokens, by digest: neither the database nor a copy of it tells a token.

CREATE TABLE tokens (
    digest     BLOB    PRIMARY KEY CHECK (length(digest) = 32),
    account    INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    read_only  INTEGER NOT NULL CHECK (read_only IN (0, 1)),
    created_ms INTEGER NOT NULL,
    UNIQUE (account, name)
) STRICT, WITHOUT ROWID;

-- When storage was last seen to take a write: `/readyz` asks by writing.
CREATE TABLE probes (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    time_ms  INTEGER NOT NULL
) STRICT;

-- What retention removes, oldest first, and by what it is found.
CREATE INDEX messages_finished ON messages (stage, finished_ms) WHERE finished_ms IS NOT NULL;
CREATE INDEX dead_letters_by_message ON dead_letters (seq);
CREATE INDEX labels_by_message ON labels (seq);
