"""The two checksums of a stored message. A single damaged bit in a column that they cover is always found.

- `checksum` covers what never changes, the body included. It is computed here. Its upper half holds a version and a
  checksum of the identity alone: whose message this is, what waits for it, and whom its end is reported to. So the
  end of a message whose content is damaged can still be reported, and its places can be released.
- `state_sum` covers the numbers that change. It is a sum that SQL computes: a trigger of the table updates it by what a
  statement has changed, so none can hide damage that was there before. A statement that changes nothing but columns of
  `OWN_SUM` must update it itself (`changes`): the trigger, which every attempt would pass twice, takes longer than all
  the rest of the statement. A message that an earlier release has stored gets one with its next claim, or with its
  next change by another statement.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Final

import orjson

from qtasks.broker.core.message_rows import MessageRow

_VERSION: Final = 2
_IDENTITY_BITS: Final = 24
FIRST_OF_VERSION_2: Final = 1 << 32
"""Checksums of earlier releases are smaller: a CRC-32."""

PRIME: Final = 2**31 - 1
"""The modulus of the state sum: no power of two is a multiple of it, so no flipped bit leaves the sum as it was."""
FACTORS: Final[Mapping[str, int]] = {
    "stage": 33554393,
    "due_ms": 30146531,
    "claim_token": 28462003,
    "retried": 25165813,
    "cancel_requested": 23068673,
    "finished_ms": 20971529,
    "slot": 19922943,
    "place": 18874379,
    "open_callbacks": 16777259,
    "interrupted_since_ms": 15728681,
    "cuts": 14680067,
    "noted_ms": 13631489,
    "quiet": 12582917,
    "open_claims": 11534351,
}
"""The columns of the state sum, each with its factor: all products together stay below 2^62."""


OWN_SUM: Final = frozenset({"stage", "claim_token", "finished_ms", "quiet", "open_claims"})
"""The columns that the trigger leaves to the statements that change nothing else."""


def state_sum(column: Callable[[str], str]) -> str:
    """The state sum as an SQL expression; `column` gives the expression for the value of a column."""
    terms = " + ".join(f"coalesce({column(name)}, -1) % {PRIME} * {factor}" for name, factor in FACTORS.items())
    return f"(({terms}) % {PRIME} + {PRIME}) % {PRIME}"


def changes(**values: str) -> str:
    """The assignments of an UPDATE of `messages`, that of the state sum included: column=SQL expression for its value.

    A parameter occurs in it more than once: give it a number.
    """
    difference = " + ".join(
        f"(coalesce({value}, -1) % {PRIME} - coalesce({name}, -1) % {PRIME}) * {FACTORS[name]}"
        for name, value in values.items()
    )
    assignments = ", ".join(f"{name} = {value}" for name, value in values.items())
    return f"{assignments}, state_sum = ((state_sum % {PRIME} + {difference}) % {PRIME} + {PRIME}) % {PRIME}"


RENEW: Final = f"UPDATE messages SET state_sum = {state_sum('{}'.format)} WHERE seq = ?"
"""Only for a message whose state is known to be what it should be."""

_NUMBERS: Final = ", ".join(f"coalesce(m.{name}, 0)" for name in FACTORS)
STATE_IS_SOUND: Final = (
    # A text or a blob is greater than every number. It would count as 0: a flipped bit can make 0 an empty blob.
    f"typeof(max({_NUMBERS})) = 'integer' AND typeof(m.lot) = 'text'"
    f" AND iif(m.state_sum IS NULL, m.checksum < {FIRST_OF_VERSION_2} AND (m.finished_ms IS NULL) = (m.stage < 10),"
    f" m.state_sum = {state_sum('m.{}'.format)})"
)
"""An SQL condition on ``messages m``: the state of the message matches its sum. Its columns need no further test."""


def checksum(message: MessageRow, body: bytes, seq: int, host: str, flow_key: str | None, parent: int | None) -> int:
    """The checksum of a message over what never changes: 64 bits, of which the version takes the first eight."""
    identity = _identity(message, seq, flow_key, parent)
    content = orjson.dumps(
        (
            message.url,
            message.method,
            message.headers,
            message.options,
            message.created_ms,
            message.not_before_ms,
            message.max_retries,
            message.timeout_ms,
            message.caller_ip,
            message.url_group,
            message.endpoint,
            message.schedule_id,
            message.call_id,
            message.interrupted_for_ms,
            message.not_before_s,
            host,
        )
    )
    return _upper_half(identity) | zlib.crc32(content, identity ^ body_sum(body))


def body_sum(body: bytes) -> int:
    """The CRC-32 of a body. The last long one is remembered: all messages of a URL group have the same."""
    if len(body) < _LONG:
        return zlib.crc32(body)
    global _last_long
    if _last_long[0] is not body:
        _last_long = body, zlib.crc32(body)
    return _last_long[1]


_LONG: Final = 4096
_last_long: tuple[bytes, int] = (b"", 0)


def is_known(checksum: int) -> bool:
    """True for the checksum of a message with damaged content that has been set aside."""
    return checksum < 0


def has_sound_identity(stored: int, message: MessageRow, seq: int, flow_key: str | None, parent: int | None) -> bool:
    """True if account, id, queue, flow-control key, parent and end callback match the `stored` checksum.

    Always False for a checksum of an earlier release, which has no such part.
    """
    return stored >> 32 == _upper_half(_identity(message, seq, flow_key, parent)) >> 32


def _identity(message: MessageRow, seq: int, flow_key: str | None, parent: int | None) -> int:
    # The constant at the end lets every bit of the values reach the bits that are kept.
    return zlib.crc32(
        orjson.dumps(
            (
                seq,
                message.account,
                message.id,
                message.end_callback,
                message.queue,
                flow_key,
                parent,
                "identity",
            )
        )
    )


def _upper_half(identity: int) -> int:
    return _VERSION << 56 | (identity & ((1 << _IDENTITY_BITS) - 1)) << 32


def checksum_of_version_1(message: MessageRow, body: bytes) -> int:
    """The checksum of releases before schema 4: a CRC-32 that covers less."""
    lines = f"{message.id}\n{message.url}\n{message.headers}\n{message.options or ''}\n"
    if message.call_id is not None or message.end_callback is not None:
        lines += f"{message.call_id}\n{message.end_callback}\n"
    return zlib.crc32(body, zlib.crc32(lines.encode()))
