-- Version 9: calls are found by their arguments.

-- Destinations whose messages have labels of an argument (protocol/labels), as the log tells: derived, as `insight_*` are.
CREATE TABLE insight_searchable (
    destination INTEGER NOT NULL,
    name        TEXT    NOT NULL,                -- of the argument
    unlabelled  INTEGER NOT NULL,                -- no newer message (`seq`) of the destination is without such a label
    PRIMARY KEY (destination, name)
) STRICT, WITHOUT ROWID;
