-- Version 11: how destinations answered last. Derived from the log, as the tables of version 6.

CREATE TABLE insight_answers (
    destination INTEGER PRIMARY KEY,
    time_ms     INTEGER NOT NULL,                -- when its last attempt ended
    status      INTEGER,                         -- of an answer that reports a failure; NULL: a success, or no answer
    error       TEXT                             -- NULL: a success
) STRICT;
