-- Version 13: what is known of the store itself.

-- How large the database was, a row an hour.
CREATE TABLE store_sizes (
    hour       INTEGER PRIMARY KEY,              -- the broker's time in whole hours
    used_bytes INTEGER NOT NULL,
    file_bytes INTEGER NOT NULL                  -- with the pages that are free inside the file
) STRICT;

-- When the store was last checked, and when a check last found damaged messages.
CREATE TABLE store_checks (
    what       TEXT    PRIMARY KEY CHECK (what IN ('pages', 'messages')),
    time_ms    INTEGER NOT NULL,
    damaged_ms INTEGER,                              -- NULL: never
    damaged    INTEGER NOT NULL CHECK (damaged >= 0) -- how many were found then
) STRICT, WITHOUT ROWID;
