"""Results in Redis: one key per call; Redis deletes it when it expires.

Writes are scripts that Redis runs one at a time, so that two writers never interleave. If Redis crashes, it loses what
it has not yet written to its disk: only results are affected, because the broker still has the messages.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, ResultError
from qtasks.tasks.results.backend import Lock, ResultRecord, record_of, row_of
from qtasks.tasks.results.database import DatabaseResults

if TYPE_CHECKING:
    import redis

TIMEOUT_S = 5.0
PREFIX = "qtasks:"
"""The beginning of every key: ``result:`` for a record, ``message:`` for its message, ``hold:`` for a lock."""

# KEYS: the record, its message. ARGV: status, JSON, call id, milliseconds to keep it or 0. A success is not replaced.
_PUT = """
local old = redis.call('HGET', KEYS[1], 'status')
if old == 'succeeded' and ARGV[1] ~= 'succeeded' then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[1], 'record', ARGV[2])
redis.call('SET', KEYS[2], ARGV[3])
for _, key in ipairs(KEYS) do
    if ARGV[4] == '0' then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, ARGV[4]) end
end
return 1
"""
# KEYS: the lock. ARGV: owner, milliseconds. Returns its owner and the milliseconds left.
_TAKE_LOCK = """
local owner = redis.call('GET', KEYS[1])
if not owner or owner == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return {ARGV[1], tonumber(ARGV[2])}
end
return {owner, redis.call('PTTL', KEYS[1])}
"""
# KEYS: the lock. ARGV: owner.
_UNLOCK = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RedisResults(DatabaseResults):
    """Records in the Redis of `url`, under keys that begin with ``qtasks:``. Finished records expire after `ttl_ms`.

    Locks expire by Redis's own clock. Raises ConfigurationError without the client, ResultError when Redis cannot be
    reached.
    """

    def __init__(self, url: str, *, ttl_ms: int) -> None:
        super().__init__(ttl_ms=ttl_ms)
        driver = _driver()
        self._client: redis.Redis = driver.Redis.from_url(
            url, decode_responses=True, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        )

    def _write(self, records: Sequence[ResultRecord], unlocked: Sequence[Lock]) -> None:
        with self._client.pipeline(transaction=True) as pipe:
            for record in records:
                keys = (f"{PREFIX}result:{record.call_id}", f"{PREFIX}message:{record.message_id}")
                keep_ms = self._ttl_ms if record.status.is_final else 0
                pipe.eval(_PUT, 2, *keys, record.status.value, json.dumps(row_of(record)), record.call_id, str(keep_ms))
            for lock in unlocked:
                pipe.eval(_UNLOCK, 1, f"{PREFIX}hold:{lock.key}", lock.owner)
            pipe.execute()

    def _lock(self, locks: Sequence[Lock], now_ms: int) -> list[Lock]:
        with self._client.pipeline(transaction=True) as pipe:
            for lock in locks:
                span_ms = max(1, lock.until_ms - now_ms)
                pipe.eval(_TAKE_LOCK, 1, f"{PREFIX}hold:{lock.key}", lock.owner, str(span_ms))
            answers: list[Any] = pipe.execute()
        return [
            Lock(lock.key, owner, now_ms + int(left_ms)) for lock, (owner, left_ms) in zip(locks, answers, strict=True)
        ]

    def _read(self, key: str) -> ResultRecord | None:
        text: Any = self._client.hget(f"{PREFIX}result:{key}", "record")
        if text is None:
            call_id: Any = self._client.get(f"{PREFIX}message:{key}")
            text = self._client.hget(f"{PREFIX}result:{call_id}", "record") if call_id is not None else None
        return None if text is None else record_of(json.loads(text))

    def _disconnect(self) -> None:
        self._client.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _driver().RedisError as error:
            raise ResultError(
                f"the results in Redis cannot be reached: {error}", code=ErrorCode.RESULTS_UNREACHABLE
            ) from error


def _driver() -> Any:
    try:
        import redis
    except ImportError as error:
        raise ConfigurationError(
            "results in Redis need its client, which is not installed",
            fix='pip install "qstash-tasks[redis]"',
            code=ErrorCode.PACKAGE_MISSING,
        ) from error
    return redis
