"""A store with very many messages, written by SQL in a few seconds per million."""

from __future__ import annotations

from typing import Final

import apsw

from tests.support.broker import ACCOUNT, START_MS
from tests.support.insight import add_account

TASKS: Final = 50
"""Destinations of the messages. One in a hundred goes to a destination of its own, as long as these are few."""
_NUMBERS: Final = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
_MESSAGES: Final = f"""{_NUMBERS}
INSERT INTO messages (seq, account, id, stage, due_ms, claim_token, finished_ms, host, url, method, headers, created_ms,
    not_before_ms, max_retries, timeout_ms, caller_ip, checksum, call_id, interrupted_for_ms)
SELECT n, {ACCOUNT}, 'msg_' || n, iif(n % 5 = 0, 1, iif(n % 100 = 1, 11, 10)), {START_MS} + n, iif(n % 5 = 0, 0, 1),
    iif(n % 5 = 0, NULL, {START_MS} + n + 50), '127.0.0.1:8000', 'http://127.0.0.1:8000/qtasks/task' || (n % {TASKS}),
    'POST', '[]', {START_MS} + n, {START_MS} + n, 3, 1000, '', 0, 'call_' || n, 1000
FROM numbers"""
_BODIES: Final = """INSERT INTO stored_bodies (seq, body)
SELECT seq, CAST('{"v":1,"id":"call_' || seq || '","args":[' || (seq % 1000) || '],"kwargs":{"user_id":' || (seq % 997)
    || ',"note":"a text of usual length"}}' AS BLOB) FROM messages"""
_LABELS: Final = f"""
INSERT INTO labels (account, label, seq, place) SELECT {ACCOUNT}, 'qtasks.arg.order=' || (seq % 997), seq, 0
FROM messages WHERE seq % {TASKS} < 10"""
_LOG: Final = f"""
INSERT INTO log (seq, account, time_ms, state, error, response_status, response_head, response_body)
SELECT m.seq, {ACCOUNT}, m.created_ms + s.later_ms, s.state,
    iif(s.state IN ('ERROR', 'FAILED'), 'the destination answered 500', NULL), iif(s.state = 'ERROR', 500, NULL),
    iif(s.state = 'ERROR', '[]', NULL), iif(s.state = 'ERROR',
    CAST('{{"error":"ValueError: order ' || m.seq || ' of kind ' || char(97 + m.seq % 26) || char(97 + m.seq / 100 % 26)
        || ' is late","code":"QT1"}}' AS BLOB), NULL)
FROM messages m JOIN (
    SELECT 0 AS place, 'CREATED' AS state, 0 AS later_ms, 0 AS stage UNION ALL SELECT 1, 'ACTIVE', 10, 10
    UNION ALL SELECT 2, 'DELIVERED', 50, 10 UNION ALL SELECT 1, 'ACTIVE', 10, 11
    UNION ALL SELECT 2, 'ERROR', 50, 11 UNION ALL SELECT 3, 'FAILED', 50, 11
) s ON s.stage IN (0, m.stage) ORDER BY m.seq, s.place"""
_DEAD_LETTERS: Final = f"""
INSERT INTO dead_letters (failed_ms, n, account, seq, error, response_status, response_head, response_body)
SELECT finished_ms, 0, {ACCOUNT}, seq, 'the destination answered 500', 500, '[]', zeroblob(500)
FROM messages WHERE stage = 11"""


def fill(db: apsw.Connection, count: int) -> int:
    """Store `count` messages: four of five have ended, one in a hundred failed. Return the time after the last one.

    They belong to `TASKS` tasks. Argument ``user_id`` has 997 values; so has ``order``, of which the calls of ten tasks
    have labels.
    """
    add_account(db)
    with db:
        db.execute(_MESSAGES, (count,))
        for sql in (_BODIES, _LABELS, _LOG, _DEAD_LETTERS):
            db.execute(sql)
    return START_MS + count + 1_000
