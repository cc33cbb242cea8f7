-- Version 3: the calls of the framework: by their own id, with the callback of their end, and with interruptions.

ALTER TABLE messages ADD COLUMN call_id TEXT;
ALTER TABLE messages ADD COLUMN end_callback TEXT;
ALTER TABLE messages ADD COLUMN interrupted_for_ms INTEGER;          -- NULL: every attempt counts, as for QStash
CREATE INDEX messages_by_call ON messages (account, call_id) WHERE call_id IS NOT NULL;
