"""The figures of the overview: now, over time, and by destination."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import apsw

from qtasks.broker.core.observed.shown_urls import without_secrets
from qtasks.broker.core.observed.statuses import Status
from qtasks.broker.store.verbs.insight import index
from qtasks.broker.store.verbs.insight.figures import ALL, COLUMNS, EVER_MS, HOUR_MS, MINUTE_MS, Figures
from qtasks.broker.store.verbs.reads import dispatchers
from qtasks.broker.store.verbs.rows import fetch, first

MAX_POINTS: Final = 120
"""Points of a series at most."""
MAX_DESTINATIONS: Final = 200
RATE_MINUTES: Final = 5
"""The last minutes that count for a rate."""
FINE_MINUTES: Final = 1_440
"""Of a longer span there are only hours."""
_FINE_BY_DESTINATION: Final = 120
"""The same for the figures of each destination, in minutes."""
_STEPS_MIN: Final = (1, 2, 5, 10, 15, 30, 60, 120)

_COUNTS: Final = "SELECT destination, status, count FROM insight_counts WHERE account = ? AND count <> 0"
_COME_DUE: Final = (
    "SELECT d.counted_as, count(*) FROM insight_messages m JOIN insight_destinations d ON d.id = m.destination"
    f" WHERE m.account = ? AND m.status = {Status.SCHEDULED} AND m.status <= 2 AND m.due_ms <= ? GROUP BY 1"
)
_SERIES: Final = (
    f"SELECT start_ms, {COLUMNS} FROM insight_spans"
    " WHERE account = ? AND step_ms = ? AND destination = ? AND start_ms >= ? ORDER BY start_ms"
)
_COUNTED: Final = "SELECT id, url, task FROM insight_destinations WHERE account = ? AND counted_as = id"
_BUSIEST: Final = (
    "SELECT s.destination, sum(s.created), sum(s.delivered + s.failed + s.retried) FROM insight_destinations d"
    " JOIN insight_spans s ON s.account = d.account AND s.step_ms = ?2 AND s.destination = d.id AND s.start_ms >= ?3"
    " WHERE d.account = ?1 AND d.counted_as = d.id GROUP BY 1"
)
_DELIVERED: Final = (
    "SELECT s.destination, sum(s.delivered) FROM insight_destinations d"
    f" JOIN insight_spans s ON s.account = d.account AND s.step_ms = {MINUTE_MS} AND s.destination = d.id"
    " AND s.start_ms >= ?2 WHERE d.account = ?1 AND d.counted_as = d.id GROUP BY 1"
)
_OLDEST_WAITING: Final = (
    "SELECT seq, due_ms FROM insight_messages WHERE account = ?1 AND status = ?2 AND status <= 2 AND due_ms <= ?3"
    " ORDER BY due_ms LIMIT 1"
)
_NEXT_SCHEDULES: Final = (
    f"SELECT id, destination, cron, next_ms, {dispatchers.IS_OF_FRAMEWORK} FROM schedules"
    " WHERE account = ? AND paused = 0 AND next_ms IS NOT NULL ORDER BY next_ms LIMIT 5"
)
_HAS_DISPATCHER: Final = (
    "SELECT EXISTS (SELECT 1 FROM prefixes WHERE dispatcher = 1)"
    " AND EXISTS (SELECT 1 FROM insight_destinations WHERE account = ? AND is_task = 1)"
)
"""A prefix belongs to no account: the account must have sent something to a task."""
_HELD: Final = (
    "SELECT (SELECT count(*) FROM queues WHERE account = ?1 AND paused = 1),"
    " (SELECT count(*) FROM flow_keys WHERE account = ?1 AND paused = 1),"
    " (SELECT count(*) FROM schedules WHERE account = ?1 AND paused = 1)"
)
_TASK_OF: Final = "SELECT task FROM insight_destinations WHERE account = ? AND url = ? AND is_task = 1"


class Point(NamedTuple):
    """What happened in one step of a series, which begins at `start_ms`."""

    start_ms: int
    figures: Figures


class DestinationFigures(NamedTuple):
    """The figures of a destination; an empty URL stands for all that are counted together."""

    url: str
    task: str | None
    counts: Mapping[Status, int]
    figures: Figures
    delivered_lately: int
    """In the span that counts for a rate."""


class NextSchedule(NamedTuple):
    """A schedule that fires soon."""

    schedule_id: str
    task: str | None
    destination: str
    cron: str
    next_ms: int


class Held(NamedTuple):
    """How much is paused."""

    queues: int
    keys: int
    schedules: int


class Totals(NamedTuple):
    """All that the overview shows. Times are the broker's, in Unix milliseconds."""

    behind: int
    counts: Mapping[Status, int]
    oldest_waiting: tuple[int, int] | None
    """`seq`, and since when it waits."""
    step_ms: int
    series: Sequence[Point]
    destinations: Sequence[DestinationFigures]
    rate_ms: int
    """The span that counts for a rate."""
    next_schedules: Sequence[NextSchedule]
    held: Held
    has_dispatcher: bool
    """A dispatcher has answered."""
    has_message: bool
    has_run: bool
    """A message was delivered."""


def totals(db: apsw.Connection, account: int, *, minutes: int, now_ms: int) -> Totals:
    """The figures of the last `minutes` minutes."""
    counts = counts_now(db, account, now_ms=now_ms)
    step_ms = step_of(minutes)
    lately, rate_ms = delivered_lately(db, account, now_ms=now_ms)
    return Totals(
        behind=index.behind(db),
        counts=_summed(counts),
        oldest_waiting=_oldest_waiting(db, account, now_ms),
        step_ms=step_ms,
        series=_series(db, account, minutes, step_ms, now_ms),
        destinations=_destinations(db, account, counts, minutes, lately, now_ms),
        rate_ms=rate_ms,
        next_schedules=_next_schedules(db, account),
        held=Held(*(first(db, _HELD, (account,)) or (0, 0, 0))),
        has_dispatcher=bool(db.execute(_HAS_DISPATCHER, (account,)).get),
        has_message=_exists(db, account, *Status),
        has_run=_exists(db, account, Status.DELIVERED),
    )


class Counters(NamedTuple):
    """What is counted for a monitoring system. Figures are since the destination is known: they never go down."""

    behind: int
    destinations: Sequence[DestinationFigures]
    all: Figures
    oldest_waiting_ms: int | None
    """Since when the message waits that waits longest."""


def counters(db: apsw.Connection, account: int, *, now_ms: int) -> Counters:
    """The counters of all destinations that have figures of their own, by number."""
    counts = counts_now(db, account, now_ms=now_ms)
    destinations = [
        DestinationFigures(url, task, counts.get(number, {}), _sum(db, account, EVER_MS, number, 0), 0)
        for number, url, task in fetch(db, _COUNTED, (account,))
    ]
    oldest = _oldest_waiting(db, account, now_ms)
    everything = _sum(db, account, EVER_MS, ALL, 0)
    return Counters(index.behind(db), destinations, everything, None if oldest is None else oldest[1])


def counts_now(db: apsw.Connection, account: int, *, now_ms: int) -> dict[int, dict[Status, int]]:
    """How many messages have each of the counted statuses, by destination."""
    counts: dict[int, dict[Status, int]] = {}
    for destination, status, count in fetch(db, _COUNTS, (account,)):
        counts.setdefault(destination, {})[Status(status)] = count
    for destination, count in fetch(db, _COME_DUE, (account, now_ms)):
        of_destination = counts.setdefault(destination, {})
        of_destination[Status.SCHEDULED] = of_destination.get(Status.SCHEDULED, 0) - count
        of_destination[Status.WAITING] = of_destination.get(Status.WAITING, 0) + count
    return counts


def delivered_lately(db: apsw.Connection, account: int, *, now_ms: int) -> tuple[Mapping[int, int], int]:
    """How many messages were delivered in the span that counts for a rate, by destination; and that span."""
    from_ms = (now_ms // MINUTE_MS - RATE_MINUTES) * MINUTE_MS
    return dict(fetch(db, _DELIVERED, (account, from_ms))), now_ms - from_ms


def sums_now(db: apsw.Connection, account: int, *, now_ms: int) -> Mapping[Status, int]:
    """How many messages have each of the counted statuses."""
    return _summed(counts_now(db, account, now_ms=now_ms))


def _summed(counts: Mapping[int, Mapping[Status, int]]) -> Mapping[Status, int]:
    sums: defaultdict[Status, int] = defaultdict(int)
    for of_destination in counts.values():
        for status, count in of_destination.items():
            sums[status] += count
    return sums


def step_of(minutes: int) -> int:
    """The step of a series over so many minutes, in milliseconds."""
    coarse = 60 if minutes > FINE_MINUTES else 1
    return next(step for step in _STEPS_MIN if step >= coarse and minutes <= step * MAX_POINTS) * MINUTE_MS


def _series(db: apsw.Connection, account: int, minutes: int, step_ms: int, now_ms: int) -> list[Point]:
    count = max(1, minutes * MINUTE_MS // step_ms)
    begin_ms = (now_ms // step_ms - count + 1) * step_ms
    points = [Point(begin_ms + number * step_ms, Figures()) for number in range(count)]
    stored_ms = HOUR_MS if step_ms >= HOUR_MS else MINUTE_MS
    for start_ms, *columns in fetch(db, _SERIES, (account, stored_ms, ALL, begin_ms)):
        number = (start_ms - begin_ms) // step_ms
        if number < count:
            points[number].figures.add(Figures.of((*columns,)))
    return points


def _destinations(
    db: apsw.Connection,
    account: int,
    counts: Mapping[int, Mapping[Status, int]],
    minutes: int,
    lately: Mapping[int, int],
    now_ms: int,
) -> list[DestinationFigures]:
    """The busiest destinations: those with the most messages and attempts in the time, then the most that wait."""
    stored_ms = MINUTE_MS if minutes <= _FINE_BY_DESTINATION else HOUR_MS
    begin_ms = (now_ms - minutes * MINUTE_MS) // stored_ms * stored_ms
    busy = {number: created + ended for number, created, ended in fetch(db, _BUSIEST, (account, stored_ms, begin_ms))}
    backlog = {number: sum(of_destination.values()) for number, of_destination in counts.items()}
    numbers = sorted(
        {*busy, *(number for number, count in backlog.items() if count)},
        key=lambda number: (busy.get(number, 0), backlog.get(number, 0), -number),
        reverse=True,
    )[:MAX_DESTINATIONS]
    names = {number: (url, task) for number, url, task in fetch(db, _COUNTED, (account,))}
    return [
        DestinationFigures(
            *names[number],
            counts.get(number, {}),
            _sum(db, account, stored_ms, number, begin_ms),
            lately.get(number, 0),
        )
        for number in numbers
        if number in names
    ]


def _sum(db: apsw.Connection, account: int, stored_ms: int, number: int, begin_ms: int) -> Figures:
    total = Figures()
    for _, *columns in fetch(db, _SERIES, (account, stored_ms, number, begin_ms)):
        total.add(Figures.of((*columns,)))
    return total


def _oldest_waiting(db: apsw.Connection, account: int, now_ms: int) -> tuple[int, int] | None:
    rows = [
        row
        for status in (Status.WAITING, Status.SCHEDULED)
        for row in fetch(db, _OLDEST_WAITING, (account, status, now_ms))
    ]
    return min(((seq, due_ms) for seq, due_ms in rows), key=lambda row: row[1], default=None)


def _next_schedules(db: apsw.Connection, account: int) -> list[NextSchedule]:
    upcoming = []
    for schedule_id, destination, cron, next_ms, is_of_framework in fetch(db, _NEXT_SCHEDULES, (account,)):
        url = without_secrets(str(destination))
        (task,) = first(db, _TASK_OF, (account, url)) or (url.rpartition("/")[2] if is_of_framework else None,)
        upcoming.append(NextSchedule(schedule_id, task, url, cron, next_ms))
    return upcoming


def _exists(db: apsw.Connection, account: int, *statuses: Status) -> bool:
    query = "SELECT EXISTS (SELECT 1 FROM insight_messages WHERE account = ? AND status = ?)"
    return any(db.execute(query, (account, status)).get for status in statuses)
