-- Version 4: damage, clocks, growth.

-- A checksum over what changes in a message. NULL: no statement of this version has written the row yet.
ALTER TABLE messages ADD COLUMN state_sum INTEGER;

-- When a flow-control key was last used: keys that nobody uses are removed.
ALTER TABLE flow_keys ADD COLUMN used_ms INTEGER NOT NULL DEFAULT 0;
