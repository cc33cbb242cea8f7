-- Version 12: failures that stay out of the list for a time, because an operator knows them.
CREATE TABLE muted_failures (
    account     INTEGER NOT NULL,
    fingerprint TEXT    NOT NULL,
    until_ms    INTEGER NOT NULL,
    who         TEXT    NOT NULL,                -- as in the audit
    PRIMARY KEY (account, fingerprint)
) STRICT, WITHOUT ROWID;
