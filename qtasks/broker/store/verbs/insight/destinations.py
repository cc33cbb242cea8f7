"""The destinations of messages: URLs without their query and without secrets, each with a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import apsw
import orjson

from qtasks.broker.core.observed.shown_urls import without_secrets
from qtasks.broker.store.verbs.rows import fetch, first

MAX_COUNTED: Final = 2_000
"""Destinations of an account that have figures of their own; those of all further ones are counted together."""

_COLUMNS: Final = "id, counted_as, url, is_task"
_FIND: Final = f"SELECT {_COLUMNS} FROM insight_destinations WHERE account = ? AND url = ? AND is_task = ?"
_NUMBERED: Final = f"SELECT {_COLUMNS} FROM insight_destinations WHERE id IN (SELECT value FROM json_each(?))"
_COUNT: Final = "SELECT count(*) FROM (SELECT 1 FROM insight_destinations WHERE account = ? LIMIT ?)"
_ADD: Final = (
    "INSERT INTO insight_destinations (account, url, is_task, task, counted_as) VALUES (?, ?, ?, ?, ?) RETURNING id"
)
_COUNT_AS_ITSELF: Final = "UPDATE insight_destinations SET counted_as = id WHERE id = ?"


class CountedDestination(NamedTuple):
    """A row of table ``insight_destinations``."""

    id: int
    counted_as: int
    url: str
    is_task: bool
    is_report: bool
    """True for messages that the framework sends itself: reports of ended calls, whose names begin with ``_``."""


def _destination(number: int, counted_as: int, url: str, is_task: int) -> CountedDestination:
    is_report = (task_in(url, is_task=bool(is_task)) or "").startswith("_")
    return CountedDestination(number, counted_as, url, bool(is_task), is_report)


def task_in(url: str, *, is_task: bool) -> str | None:
    """The name of the task in a URL, its last segment; None for a message that is not of the framework."""
    return without_secrets(url).rpartition("/")[2] or None if is_task else None


class Destinations:
    """The destinations that one slice of the log needs; new ones are stored."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._seen: dict[tuple[int, str, bool], CountedDestination] = {}

    def numbered(self, numbers: Iterable[int]) -> Mapping[int, CountedDestination]:
        """Those of the given numbers."""
        rows = fetch(self._db, _NUMBERED, (orjson.dumps(sorted(numbers)).decode(),))
        return {row[0]: _destination(*row) for row in rows}

    def of(self, account: int, url: str, *, is_task: bool) -> CountedDestination:
        """The destination of messages to a URL, which may have a query."""
        key = account, without_secrets(url), is_task
        if (destination := self._seen.get(key)) is None:
            destination = self._seen[key] = self._stored(*key) or self._added(*key)
        return destination

    def _stored(self, account: int, url: str, is_task: bool) -> CountedDestination | None:
        row = first(self._db, _FIND, (account, url, is_task))
        return None if row is None else _destination(*row)

    def _added(self, account: int, url: str, is_task: bool) -> CountedDestination:
        is_counted = not url or self._db.execute(_COUNT, (account, MAX_COUNTED)).get < MAX_COUNTED
        others = 0 if is_counted else self.of(account, "", is_task=False).id
        number = self._db.execute(_ADD, (account, url, is_task, task_in(url, is_task=is_task), others)).get
        if is_counted:
            self._db.execute(_COUNT_AS_ITSELF, (number,))
        return _destination(number, others or number, url, is_task)
