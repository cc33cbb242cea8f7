"""What is stored of URL prefixes: whether a dispatcher answered there, and whether they refuse (docs/protocol.md 5.14).

A prefix that refuses is down until a probe is answered. Probes are the first messages of its lot. Each claim of them
sets when the next may start: after `PATIENCE_MS`, and twice as many, in case the first takes long. If a probe is
refused, there is one again, after a pause.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import apsw

from qtasks.broker.core.interruptions import PATIENCE_MS, QUICK_FOR_MS, probe_pause_ms
from qtasks.broker.core.values import USE_NOTED_MS
from qtasks.broker.store.verbs.parking import parked

_MOST_PROBES: Final = 1 << 16


class PrefixState(NamedTuple):
    """A row of table ``prefixes``; the fields are the names of the columns."""

    dispatcher: int = 0
    down_since_ms: int | None = None
    probe_ms: int | None = None
    probes: int = 1
    used_ms: int | None = None
    """When its last use was noted; None: nothing is stored of it."""

    def probes_at(self, now_ms: int) -> int:
        """How many probes may start now; only for a prefix that is down."""
        return self.probes if self.probe_ms is None or self.probe_ms <= now_ms else 0


_SELECT: Final = f"SELECT {', '.join(PrefixState._fields)} FROM prefixes WHERE lot = ?"
_GO_DOWN: Final = (
    "INSERT INTO prefixes (lot, down_since_ms, probe_ms, probes, used_ms) VALUES (?1, ?2, ?3, 1, ?2)"
    " ON CONFLICT (lot) DO UPDATE SET down_since_ms = excluded.down_since_ms, probe_ms = excluded.probe_ms, probes = 1"
)
_SCHEDULE_PROBES: Final = "UPDATE prefixes SET probe_ms = ?, probes = ? WHERE lot = ? AND down_since_ms IS NOT NULL"


def read(db: apsw.Connection, prefix: str) -> PrefixState:
    """The state of a prefix."""
    row = db.execute(_SELECT, (prefix,)).fetchone()
    return PrefixState() if row is None else PrefixState._make(row)


def note_use(db: apsw.Connection, prefix: str, state: PrefixState, *, now_ms: int) -> None:
    """A message of the prefix may start: what is stored of it is kept from now on for the retention of messages."""
    if state.used_ms is not None and now_ms > state.used_ms + USE_NOTED_MS:
        db.execute("UPDATE prefixes SET used_ms = ? WHERE lot = ?", (now_ms, prefix))


def note_dispatcher(db: apsw.Connection, prefix: str, *, now_ms: int) -> None:
    """A dispatcher of the framework has answered at the prefix."""
    db.execute(
        "INSERT INTO prefixes (lot, dispatcher, used_ms) VALUES (?, 1, ?)"
        " ON CONFLICT (lot) DO UPDATE SET dispatcher = 1",
        (prefix, now_ms),
    )


def note_answer(db: apsw.Connection, prefix: str) -> None:
    """A probe was answered: the prefix is not down any more."""
    parked.of(db).wake_prefix(prefix)
    db.execute(
        "UPDATE prefixes SET down_since_ms = NULL, probe_ms = NULL, probes = 1"
        " WHERE lot = ? AND down_since_ms IS NOT NULL",
        (prefix,),
    )


def note_refusal(db: apsw.Connection, prefix: str, *, is_probe: bool, now_ms: int) -> int:
    """The prefix refused: it is down from now on. Return when the next probe may start.

    A refusal that no probe met, because its attempt began before, changes nothing for a prefix that is down.
    """
    parked.of(db).wake_prefix(prefix)  # the next claim sees until when it waits now
    state = read(db, prefix)
    if state.down_since_ms is None:
        probe_ms = now_ms + probe_pause_ms(0)
        db.execute(_GO_DOWN, (prefix, now_ms, probe_ms))
        return probe_ms
    if not is_probe:
        return state.probe_ms or now_ms
    probe_ms = now_ms + probe_pause_ms(now_ms - state.down_since_ms)
    db.execute(_SCHEDULE_PROBES, (probe_ms, 1, prefix))
    return probe_ms


def note_probes(db: apsw.Connection, prefix: str, state: PrefixState, *, is_first: bool, now_ms: int) -> None:
    """Probes of a prefix that is down have started. `is_first`: nothing else waits for it.

    A prefix that nothing was sent to for a while is as good as new: its first minute begins again.
    """
    if is_first and state.probe_ms is not None and now_ms - state.probe_ms > QUICK_FOR_MS:
        db.execute(_GO_DOWN, (prefix, now_ms, now_ms))
    db.execute(_SCHEDULE_PROBES, (now_ms + PATIENCE_MS, min(2 * state.probes, _MOST_PROBES), prefix))
