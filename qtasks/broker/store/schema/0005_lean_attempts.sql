-- Version 5: attempts in groups.

-- A statement that changes nothing but `stage`, `claim_token`, `finished_ms`, `quiet` or `open_claims` updates the state
-- sum itself (verbs/sums.py, `OWN_SUM`): a row that such a trigger watches takes three times as long to change.
DROP TRIGGER messages_state_sum;
CREATE TRIGGER messages_state_sum AFTER UPDATE OF
    due_ms, retried, cancel_requested, slot, place, open_callbacks, interrupted_since_ms, cuts, noted_ms
ON messages WHEN NEW.state_sum IS OLD.state_sum AND (OLD.state_sum IS NOT NULL OR OLD.checksum < 4294967296)
BEGIN
    UPDATE messages SET state_sum = ((coalesce(OLD.state_sum % 2147483647,
        coalesce(OLD.stage, -1) % 2147483647 * 33554393
        + coalesce(OLD.due_ms, -1) % 2147483647 * 30146531
        + coalesce(OLD.claim_token, -1) % 2147483647 * 28462003
        + coalesce(OLD.retried, -1) % 2147483647 * 25165813
        + coalesce(OLD.cancel_requested, -1) % 2147483647 * 23068673
        + coalesce(OLD.finished_ms, -1) % 2147483647 * 20971529
        + coalesce(OLD.slot, -1) % 2147483647 * 19922943
        + coalesce(OLD.place, -1) % 2147483647 * 18874379
        + coalesce(OLD.open_callbacks, -1) % 2147483647 * 16777259
        + coalesce(OLD.interrupted_since_ms, -1) % 2147483647 * 15728681
        + coalesce(OLD.cuts, -1) % 2147483647 * 14680067
        + coalesce(OLD.noted_ms, -1) % 2147483647 * 13631489
        + coalesce(OLD.quiet, -1) % 2147483647 * 12582917
        + coalesce(OLD.open_claims, -1) % 2147483647 * 11534351
    )
        + (coalesce(NEW.stage, -1) % 2147483647 - coalesce(OLD.stage, -1) % 2147483647) * 33554393
        + (coalesce(NEW.due_ms, -1) % 2147483647 - coalesce(OLD.due_ms, -1) % 2147483647) * 30146531
        + (coalesce(NEW.claim_token, -1) % 2147483647 - coalesce(OLD.claim_token, -1) % 2147483647) * 28462003
        + (coalesce(NEW.retried, -1) % 2147483647 - coalesce(OLD.retried, -1) % 2147483647) * 25165813
        + (coalesce(NEW.cancel_requested, -1) % 2147483647 - coalesce(OLD.cancel_requested, -1) % 2147483647) * 23068673
        + (coalesce(NEW.finished_ms, -1) % 2147483647 - coalesce(OLD.finished_ms, -1) % 2147483647) * 20971529
        + (coalesce(NEW.slot, -1) % 2147483647 - coalesce(OLD.slot, -1) % 2147483647) * 19922943
        + (coalesce(NEW.place, -1) % 2147483647 - coalesce(OLD.place, -1) % 2147483647) * 18874379
        + (coalesce(NEW.open_callbacks, -1) % 2147483647 - coalesce(OLD.open_callbacks, -1) % 2147483647) * 16777259
        + (coalesce(NEW.interrupted_since_ms, -1) % 2147483647 - coalesce(OLD.interrupted_since_ms, -1) % 2147483647) * 15728681
        + (coalesce(NEW.cuts, -1) % 2147483647 - coalesce(OLD.cuts, -1) % 2147483647) * 14680067
        + (coalesce(NEW.noted_ms, -1) % 2147483647 - coalesce(OLD.noted_ms, -1) % 2147483647) * 13631489
        + (coalesce(NEW.quiet, -1) % 2147483647 - coalesce(OLD.quiet, -1) % 2147483647) * 12582917
        + (coalesce(NEW.open_claims, -1) % 2147483647 - coalesce(OLD.open_claims, -1) % 2147483647) * 11534351
    ) % 2147483647 + 2147483647) % 2147483647 WHERE seq = NEW.seq;
END;
