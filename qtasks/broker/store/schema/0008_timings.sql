-- Version 8: where the time of an attempt goes.

-- Of the entry that ends an attempt (DELIVERED, ERROR), in milliseconds. NULL: not known, or the attempt did not get there.
ALTER TABLE log ADD COLUMN connect_ms INTEGER;    -- name lookup, TCP and TLS
ALTER TABLE log ADD COLUMN first_byte_ms INTEGER; -- from there until the response began
ALTER TABLE log ADD COLUMN body_ms INTEGER;       -- from there until it ended
ALTER TABLE log ADD COLUMN bundled INTEGER;       -- how many deliveries the request carried; NULL: one
