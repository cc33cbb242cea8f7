-- Version 7: what the console shows.

-- A token that opens the console, which then shows no payload, and nothing else.
ALTER TABLE tokens ADD COLUMN without_payloads INTEGER NOT NULL DEFAULT 0 CHECK (without_payloads IN (0, 1));

-- When the signing keys of an account were last rotated. NULL: never, or before this version.
ALTER TABLE signing_keys ADD COLUMN rotated_ms INTEGER;

-- JSON: ids of the messages of a tick that fired, the first hundred.
ALTER TABLE ticks ADD COLUMN messages TEXT NOT NULL DEFAULT '[]';

-- The callbacks of a message, each of which is a message.
CREATE INDEX messages_by_parent ON messages (parent) WHERE parent IS NOT NULL;
