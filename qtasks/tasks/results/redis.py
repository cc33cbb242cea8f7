"""Results in Redis: one key per call; Redis deletes it when it expires.

Writes are scripts that Redis runs one at a time, so that two writers never interleave. If Redis crashes, it loses what
it has not yet written to its disk: only results are affected, because the broker still has the messages.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, ResultError
from qtasks.forks import keep_inherited
from qtasks.tasks.results.backend import (
    FLOW_PREFIX,
    REFUSED,
    Lock,
    ResultRecord,
    ResultStatus,
    record_of,
    row_of,
    stored_ms,
)
from qtasks.tasks.results.database import DatabaseResults

if TYPE_CHECKING:
    import redis

TIMEOUT_S = 5.0
_OTHER_FIELDS = 9
"""How many fields of a row come before `kept`. Records of earlier versions have no more."""

PREFIX = "qtasks:"
"""The beginning of every key: ``result:`` for a record, ``message:`` for its message, ``hold:`` for a lock, ``flows``
for the sorted set of open flows."""

# KEYS: the record, its message. ARGV: status, JSON, call id, milliseconds to store it, 1 if it is kept.
# The rules of `backend.merged`.
_PUT = f"""
local refused = {{{", ".join(f"['{pair}'] = true" for pair in REFUSED)}}}
local old = redis.call('HMGET', KEYS[1], 'status', 'kept')
if old[1] and refused[old[1] .. ' ' .. ARGV[1]] then return 0 end
local kept = '0'
if old[2] == '1' or (ARGV[5] == '1' and old[1] ~= 'succeeded') then kept = '1' end
redis.call('HSET', KEYS[1], 'status', ARGV[1], 'record', ARGV[2], 'kept', kept)
redis.call('SET', KEYS[2], ARGV[3])
for _, key in ipairs(KEYS) do
    if kept == '1' then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, ARGV[4]) end
end
return 1
"""
_IS_FINAL = "(status == 'succeeded' or status == 'failed' or status == 'cancelled' or status == 'expired')"
# KEYS: the record, the set of open flows. ARGV: call id, Unix time of its change.
_NOTE_FLOW = f"""
local status, kept = unpack(redis.call('HMGET', KEYS[1], 'status', 'kept'))
if kept == '1' and not {_IS_FINAL} then return redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1]) end
return redis.call('ZREM', KEYS[2], ARGV[1])
"""
# KEYS: the record, the set of open flows. ARGV: call id, milliseconds to store a final one, prefix of the key of its
# message, milliseconds to store another.
_RELEASE = f"""
redis.call('ZREM', KEYS[2], ARGV[1])
local status, kept, record = unpack(redis.call('HMGET', KEYS[1], 'status', 'kept', 'record'))
if kept ~= '1' then return 0 end
redis.call('HSET', KEYS[1], 'kept', '0')
local store_ms = ARGV[4]
if {_IS_FINAL} then store_ms = ARGV[2] end
redis.call('PEXPIRE', KEYS[1], store_ms)
redis.call('PEXPIRE', ARGV[3] .. cjson.decode(record)[2], store_ms)
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

    Those that never end expire later, see `stored_ms`. Kept records do not expire; a released one that has finished
    expires `ttl_ms` after its release. Locks expire by Redis's own clock. Raises ConfigurationError
    without the client, ResultError when Redis cannot be reached.
    """

    def __init__(self, url: str, *, ttl_ms: int) -> None:
        _driver()
        self._url = url
        self._client: redis.Redis
        super().__init__(ttl_ms=ttl_ms)

    def _write(self, records: Sequence[ResultRecord], unlocked: Sequence[Lock], released: Sequence[str]) -> None:
        flows = f"{PREFIX}flows"
        with self._client.pipeline(transaction=True) as pipe:
            for record in records:
                call_id = record.call_id
                keys = (f"{PREFIX}result:{call_id}", f"{PREFIX}message:{record.message_id}")
                store_ms = str(stored_ms(record.status, self._ttl_ms))
                text, kept = json.dumps(row_of(record)), str(int(record.kept))
                pipe.eval(_PUT, 2, *keys, record.status.value, text, call_id, store_ms, kept)
                if call_id.startswith(FLOW_PREFIX):
                    pipe.eval(_NOTE_FLOW, 2, keys[0], flows, call_id, str(record.updated_ms))
            for lock in unlocked:
                pipe.eval(_UNLOCK, 1, f"{PREFIX}hold:{lock.key}", lock.owner)
            for call_id in released:
                key = f"{PREFIX}result:{call_id}"
                longest_ms = str(stored_ms(ResultStatus.QUEUED, self._ttl_ms))
                pipe.eval(_RELEASE, 2, key, flows, call_id, str(self._ttl_ms), f"{PREFIX}message:", longest_ms)
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
        record = self._record(key)
        if record is None:
            call_id: Any = self._client.get(f"{PREFIX}message:{key}")
            record = self._record(call_id) if call_id is not None else None
        return record

    def _statuses(self, call_ids: Sequence[str]) -> Iterator[tuple[str, str]]:
        with self._client.pipeline(transaction=False) as pipe:
            for call_id in call_ids:
                pipe.hget(f"{PREFIX}result:{call_id}", "status")
            answers: list[str | None] = pipe.execute()
        return ((call_id, status) for call_id, status in zip(call_ids, answers, strict=True) if status is not None)

    def _open_flows(self, limit: int) -> list[ResultRecord]:
        call_ids: Any = self._client.zrange(f"{PREFIX}flows", 0, limit - 1)
        return [record for call_id in call_ids if (record := self._record(call_id)) is not None]

    def _record(self, call_id: str) -> ResultRecord | None:
        text, kept = cast("list[str | None]", self._client.hmget(f"{PREFIX}result:{call_id}", "record", "kept"))
        if text is None:
            return None
        row: list[Any] = json.loads(text)
        return record_of((*row[:_OTHER_FIELDS], kept == "1"))  # the JSON says what its writer knew

    def _disconnect(self) -> None:
        self._client.close()

    def _forget(self) -> None:
        keep_inherited(getattr(self, "_client", None))  # there is none when the first process begins
        self._client = _driver().Redis.from_url(
            self._url, decode_responses=True, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        )

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
