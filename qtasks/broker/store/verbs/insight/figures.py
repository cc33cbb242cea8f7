"""What happened in each minute and hour, by destination: how many messages, how long they took and waited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import apsw

from qtasks.broker.core.observed import histograms
from qtasks.broker.store.verbs.insight.destinations import CountedDestination
from qtasks.broker.store.verbs.rows import write_each

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
EVER_MS: Final = 0
"""In place of a step: since the destination is known, in one row that begins at 0."""
ALL: Final = 0
"""In place of a destination: all of an account, without the reports that the framework sends itself."""

COLUMNS: Final = "created, delivered, failed, retried, durations, waits"
_READ: Final = (
    f"SELECT {COLUMNS} FROM insight_spans WHERE account = ? AND step_ms = ? AND destination = ? AND start_ms = ?"
)
_WRITE: Final = (
    f"INSERT INTO insight_spans (account, step_ms, destination, start_ms, {COLUMNS})"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET created = excluded.created,"
    " delivered = excluded.delivered, failed = excluded.failed, retried = excluded.retried,"
    " durations = excluded.durations, waits = excluded.waits"
)


@dataclass(slots=True)
class Figures:
    """What happened in a span of time. `durations` and `waits` are histograms."""

    created: int = 0
    delivered: int = 0
    failed: int = 0
    retried: int = 0
    durations: int = 0
    waits: int = 0

    def add(self, other: Figures) -> None:
        """Add what happened in another span."""
        self.created += other.created
        self.delivered += other.delivered
        self.failed += other.failed
        self.retried += other.retried
        self.durations += other.durations
        self.waits += other.waits

    @classmethod
    def of(cls, row: tuple[int, int, int, int, bytes, bytes]) -> Figures:
        """The figures in a row of `COLUMNS`."""
        created, delivered, failed, retried, durations, waits = row
        return cls(created, delivered, failed, retried, histograms.unpack(durations), histograms.unpack(waits))


class FreshFigures:
    """What one slice of the log adds to the figures."""

    def __init__(self) -> None:
        self._minutes: dict[tuple[int, int, int], Figures] = {}
        self._reports: set[int] = set()
        """Destinations of reports, as they are counted."""

    def at(self, account: int, destination: CountedDestination, time_ms: int) -> Figures:
        """Those of the minute at `time_ms`, to add to."""
        key = account, destination.counted_as, time_ms // MINUTE_MS
        if (figures := self._minutes.get(key)) is None:
            figures = self._minutes[key] = Figures()
        if destination.is_report:
            self._reports.add(destination.counted_as)
        return figures

    def write(self, db: apsw.Connection) -> None:
        """Add them to what is stored: by minute, by hour and ever, of each destination and of all."""
        spans: dict[tuple[int, int, int, int], Figures] = {}
        for (account, destination, minute), fresh in self._minutes.items():
            time_ms = minute * MINUTE_MS
            for step_ms in (MINUTE_MS, HOUR_MS, EVER_MS):
                start_ms = time_ms // step_ms * step_ms if step_ms else 0
                for counted in (destination,) if destination in self._reports else (destination, ALL):
                    spans.setdefault((account, step_ms, counted, start_ms), Figures()).add(fresh)
        for key, figures in spans.items():
            if (stored := db.execute(_READ, key).fetchone()) is not None:
                figures.add(Figures.of(stored))
        write_each(db, _WRITE, [(*key, *_row(figures)) for key, figures in spans.items()])


def _row(figures: Figures) -> tuple[int, int, int, int, bytes, bytes]:
    return (
        figures.created,
        figures.delivered,
        figures.failed,
        figures.retried,
        histograms.pack(figures.durations),
        histograms.pack(figures.waits),
    )
