"""A message as it is stored, with what shows whether that is still what was accepted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, Final, NamedTuple

import apsw

from qtasks.broker.core import lots, message_rows
from qtasks.broker.core.message_rows import MessageRow
from qtasks.broker.core.rules import FINAL, Stage
from qtasks.broker.store.verbs import rows, sums
from qtasks.protocol.messages import Message


class Fault(StrEnum):
    """What is damaged in a stored message; the value is its error text, as a dead letter and as a log entry."""

    CONTENT = "corrupt: the stored message no longer matches its checksum; it was not sent"
    STATE = (
        "corrupt: what is stored of the progress of this message, such as when it is due, no longer matches its"
        " checksum; it was set aside. Its content is sound: retry the dead letter to send it"
    )


class StoredMessage(NamedTuple):
    """A row of `SELECT`. The fields are the names of the columns, save the last three."""

    seq: int
    stage: int
    host: str
    lot: str
    claim_token: int
    open_claims: int
    checksum: int
    slot: int
    place: int | None
    flow_key: str | None
    parent: int | None
    due_ms: int
    interrupted_since_ms: int | None
    cuts: int
    noted_ms: int | None
    has_sound_state: int | None
    """1: the numbers that change match their sum. They need no test of their own then."""
    body: bytes
    message: MessageRow

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> StoredMessage:
        """The message in a row of `SELECT`."""
        return cls._make((*row[:_OWN], MessageRow._make(row[_OWN:])))

    def has_sound_content(self) -> bool:
        """True if what never changes is what was accepted, the body included."""
        try:
            if self.checksum < sums.FIRST_OF_VERSION_2:
                return self.checksum == sums.checksum_of_version_1(self.message, self.body)
            return self.checksum == sums.checksum(
                self.message, self.body, self.seq, self.host, self.flow_key, self.parent
            )
        except (TypeError, ValueError, AttributeError):  # a value of a wrong type
            return False

    def has_sound_identity(self) -> bool:
        """True if it is proved whose message this is, what waits for it, and whom its end is reported to."""
        try:
            if sums.has_sound_identity(self.checksum, self.message, self.seq, self.flow_key, self.parent):
                return True
        except (TypeError, ValueError):
            return False
        return self.has_sound_content()

    def fault(self) -> Fault | None:
        """What is damaged; None if nothing is."""
        return self.state_fault() if self.has_sound_content() else Fault.CONTENT

    def is_set_aside(self) -> bool:
        """True if its content is damaged, and it is a dead letter for that."""
        return self.stage == Stage.FAILED and sums.is_known(self.checksum)

    def state_fault(self) -> Fault | None:
        """What is damaged apart from the content, which is not looked at; None if nothing is."""
        return None if self.has_sound_state and self._has_sound_lot() else Fault.STATE

    def _has_sound_lot(self) -> bool:
        message = self.message
        return self.stage in FINAL or lots.is_lot_of(
            self.lot, self.host, message.url, may_wait=message.interrupted_for_ms is not None
        )

    def unpacked(self) -> Message:
        """The message; if its content is damaged, it says so."""
        message = message_rows.shown_message(self.message, self.body)
        return message if message.damaged or self.has_sound_content() else message_rows.marked_damaged(message)


_OWN: Final = len(StoredMessage._fields) - 1
"""Columns of a stored message apart from its `MessageRow`."""
_BODY: Final = "(SELECT b.body FROM bodies b WHERE b.seq = m.seq)"


def _select(body: str) -> str:
    """A query on ``messages m``; `body` is an expression, because a join would take ten times as long for one row."""
    numbers = ", ".join(f"m.{name}" for name in StoredMessage._fields[: _OWN - 2])
    return f"SELECT {numbers}, {sums.STATE_IS_SOUND}, {body}, {message_rows.MESSAGE_COLUMNS} FROM messages m"


SELECT: Final = _select(_BODY)
_BY_SEQ: Final = f"{SELECT} WHERE m.seq = ?"
_WITHOUT_BODY: Final = f"{_select('NULL')} WHERE m.seq = ?"
_IDENTITY: Final = f"{_select(f'iif(m.checksum < {sums.FIRST_OF_VERSION_2}, {_BODY}, NULL)')} WHERE m.seq = ?"
"""Only the identity of an earlier release needs the body for its proof."""


def one(db: apsw.Connection, seq: int) -> StoredMessage | None:
    """The message `seq`, or None."""
    row = rows.first(db, _BY_SEQ, (seq,))
    return None if row is None else StoredMessage.of(row)


def every(db: apsw.Connection) -> Iterator[StoredMessage]:
    """All messages, in order of acceptance."""
    for (seq,) in rows.fetch(db, "SELECT seq FROM messages ORDER BY seq"):
        message = one(db, seq)
        if message is not None:
            yield message


def without_body(db: apsw.Connection, seq: int) -> StoredMessage | None:
    """The message `seq` without its body, or None: only its state can be proved."""
    row = rows.first(db, _WITHOUT_BODY, (seq,))
    return None if row is None else StoredMessage.of(row)


def identity(db: apsw.Connection, seq: int) -> StoredMessage | None:
    """The message `seq` without its body, if its identity is sound; otherwise None."""
    row = rows.first(db, _IDENTITY, (seq,))
    if row is None or not (message := StoredMessage.of(row)).has_sound_identity():
        return None
    return message


def several(db: apsw.Connection, condition: str, *values: object, size: int) -> list[StoredMessage]:
    """The messages that meet an SQL condition on ``messages m``, in the order that it gives.

    The rest is not read once their bodies have `size` bytes.
    """
    select = f"{SELECT} {condition}"
    try:
        cursor = db.execute(select, values)
        messages = _fitting(map(StoredMessage.of, cursor), size)
        cursor.close()
    except UnicodeDecodeError:
        return _fitting(map(StoredMessage.of, rows.fetch(db, select, values)), size)
    return messages


def _fitting(messages: Iterable[StoredMessage], size: int) -> list[StoredMessage]:
    fitting: list[StoredMessage] = []
    for message in messages:
        fitting.append(message)
        size -= len(message.body or b"")
        if size <= 0:
            break
    return fitting
