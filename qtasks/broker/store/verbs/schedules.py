"""Schedules: create, pause, delete, show, and fire once for each tick (docs/protocol.md 2.7, 5.8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import apsw
import orjson

from qtasks.broker.core.message_rows import pack_headers, unpack_options
from qtasks.broker.core.operator_changes import OperatorChange
from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import Firing
from qtasks.broker.store.verbs import broker_time, pauses
from qtasks.broker.store.verbs.accept import insert
from qtasks.broker.store.verbs.rows import fetch
from qtasks.protocol import wire
from qtasks.protocol.messages import PublishOptions, Redaction, RunState, Schedule

_SELECT: Final = (
    "SELECT account, id, destination, cron, options, body, caller_ip, created_ms, paused, next_ms, last_ms, last_run,"
    " error FROM schedules"
)
_TICKS_KEPT_MS: Final = 7 * 24 * 60 * 60 * 1000
"""Time that a tick stays stored. A clock that shows the same time again within it fires nothing twice."""
_TICKS_REMOVED: Final = 200
"""Old ticks that a firing removes at most: more than it stores."""
_IDS_KEPT: Final = 100
"""Ids of messages that are stored with a tick; a URL group may have many endpoints."""
_DAMAGED: Final = "(what is stored of this schedule is damaged: create it again)"
"""Stands for the expression of a damaged schedule: it cannot run, and the others go on."""
_HIDDEN: Final = PublishOptions(redact=Redaction(body=True, all_headers=True))
_IS_INTERVAL: Final = "instr(cron, '@every') > 0"
"""As `cron.is_interval`: the runs of such a schedule are in the broker's time, those of others in wall time."""


class NextRun(NamedTuple):
    """When a schedule runs next; the fields are the names of the columns."""

    account: int
    id: str
    cron: str
    next_ms: int | None


def put_schedule(db: apsw.Connection, schedule: Schedule) -> None:
    """Store a schedule. One with the same id is replaced; creation time, pause and past runs stay.

    See docs/compatibility.md A18.
    """
    db.execute(
        "INSERT INTO schedules (account, id, destination, cron, options, body, caller_ip, created_ms, next_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (account, id) DO UPDATE SET destination = excluded.destination, cron = excluded.cron,"
        " options = excluded.options, body = excluded.body, caller_ip = excluded.caller_ip, next_ms = excluded.next_ms,"
        " error = NULL",
        (
            schedule.account,
            schedule.id,
            schedule.destination,
            schedule.cron,
            pack_headers(wire.write(schedule.options)),
            schedule.body,
            schedule.caller_ip,
            schedule.created_ms,
            schedule.next_ms,
        ),
    )


def delete_schedule(db: apsw.Connection, account: int, schedule_id: str) -> bool:
    """Delete a schedule; its messages stay. False if it does not exist."""
    pauses.forget(db, account, "schedule", schedule_id)
    db.execute("DELETE FROM ticks WHERE account = ? AND schedule = ?", (account, schedule_id))
    row = db.execute("DELETE FROM schedules WHERE account = ? AND id = ? RETURNING 1", (account, schedule_id)).get
    return row is not None


def pause_schedule(
    db: apsw.Connection,
    account: int,
    schedule_id: str,
    *,
    paused: bool,
    next_ms: int | None,
    cause: OperatorChange | None = None,
) -> bool:
    """Pause, or resume with the run at `next_ms`; runs during a pause are not repeated. False if it does not exist."""
    row = db.execute(
        "UPDATE schedules SET next_ms = CASE WHEN paused AND NOT ? THEN ? ELSE next_ms END, paused = ?"
        " WHERE account = ? AND id = ? RETURNING 1",
        (int(paused), next_ms, int(paused), account, schedule_id),
    ).get
    if row is None:
        return False
    pauses.note(db, account, "schedule", schedule_id, paused=paused, cause=cause)
    return True


def schedule(db: apsw.Connection, account: int, schedule_id: str) -> Schedule | None:
    """A schedule with the states of its last run, or None."""
    row = db.execute(f"{_SELECT} WHERE account = ? AND id = ?", (account, schedule_id)).get
    return None if row is None else _schedule(db, row)


def schedule_ids(db: apsw.Connection, account: int) -> list[str]:
    """The ids of all schedules, oldest first."""
    rows = fetch(db, "SELECT id FROM schedules WHERE account = ? ORDER BY created_ms, id", (account,))
    return [schedule_id for (schedule_id,) in rows]


def schedules(db: apsw.Connection, account: int) -> list[Schedule]:
    """All schedules, oldest first."""
    rows = fetch(db, f"{_SELECT} WHERE account = ? ORDER BY created_ms, id", (account,))
    return [_schedule(db, row) for row in rows]


def due_schedules(db: apsw.Connection, *, now_ms: int, offset_ms: int = 0, limit: int) -> list[Schedule]:
    """Schedules of all accounts whose next run is due, earliest first. The wall time is `now_ms` plus `offset_ms`."""
    wall_ms = now_ms + offset_ms
    rows = fetch(
        db,
        f"{_SELECT} WHERE paused = 0 AND next_ms IS NOT NULL AND next_ms <= ?"
        f" AND next_ms <= iif({_IS_INTERVAL}, ?, ?) ORDER BY next_ms LIMIT ?",
        (max(now_ms, wall_ms), now_ms, wall_ms, limit),
    )
    return [_schedule(db, row) for row in rows]


def next_tick(db: apsw.Connection, *, offset_ms: int = 0) -> int | None:
    """When the next schedule is due, in the broker's time; None if there is none."""
    if not offset_ms:
        next_ms = db.execute("SELECT min(next_ms) FROM schedules WHERE paused = 0 AND next_ms IS NOT NULL").get
    else:
        next_ms = db.execute(
            f"SELECT min(iif({_IS_INTERVAL}, next_ms, next_ms - ?)) FROM schedules"
            " WHERE paused = 0 AND next_ms IS NOT NULL",
            (offset_ms,),
        ).get
    return cast("int | None", next_ms)


def cron_schedules(db: apsw.Connection, *, after: tuple[int, str] | None, limit: int) -> list[NextRun]:
    """One page of the schedules that follow the wall clock and are not paused, those behind `after`."""
    account, schedule_id = after or (-1, "")
    rows = fetch(
        db,
        f"SELECT account, id, cron, next_ms FROM schedules WHERE (account, id) > (?, ?) AND paused = 0"
        f" AND NOT {_IS_INTERVAL} ORDER BY account, id LIMIT ?",
        (account, schedule_id, limit),
    )
    return [NextRun._make(row) for row in rows]


def bring_forward(db: apsw.Connection, runs: Sequence[tuple[NextRun, int]]) -> None:
    """Set the next runs of schedules, except of those that have changed since they were read."""
    db.executemany(
        "UPDATE schedules SET next_ms = ? WHERE account = ? AND id = ? AND paused = 0 AND next_ms IS ? AND cron = ?",
        [(next_ms, run.account, run.id, run.next_ms, run.cron) for run, next_ms in runs],
    )


def fired_ticks(db: apsw.Connection, schedule: Schedule, *, from_ms: int) -> frozenset[int]:
    """The ticks from `from_ms` on that the schedule has fired, as far as they are still stored."""
    rows = fetch(
        db,
        "SELECT tick_ms FROM ticks WHERE account = ? AND schedule = ? AND tick_ms >= ? AND outcome = 'FIRED'",
        (schedule.account, schedule.id, from_ms),
    )
    return frozenset(tick_ms for (tick_ms,) in rows)


def fire(db: apsw.Connection, firing: Firing, *, now_ms: int) -> bool:
    """Store the messages of a tick and set the schedule's next run.

    False, and nothing written, if the schedule has changed since it was read. A tick fires once, even if the clock is
    set back: a tick that has fired before stores nothing. A tick that a wrong clock only left out fires at its time.
    """
    schedule = firing.schedule
    changed = db.execute(
        "UPDATE schedules SET next_ms = ? WHERE account = ? AND id = ? AND paused = 0 AND next_ms = ? RETURNING 1",
        (firing.next_ms, schedule.account, schedule.id, schedule.next_ms),
    ).get
    if changed is None:
        return False
    for tick_ms in firing.missed:
        _record_tick(db, schedule, tick_ms, "MISSED", now_ms)
    if firing.tick_ms is not None:
        outcome = "FIRED" if firing.publications else "FAILED"
        message_ids = [publication.message.id for publication in firing.publications]
        if _record_tick(db, schedule, firing.tick_ms, outcome, now_ms, message_ids[:_IDS_KEPT]):
            insert(db, firing.publications, now_ms=now_ms)
            run = orjson.dumps(message_ids).decode()
            db.execute(
                "UPDATE schedules SET last_ms = ?, last_run = ? WHERE account = ? AND id = ?",
                (firing.tick_ms, run, schedule.account, schedule.id),
            )
    db.execute(
        "UPDATE schedules SET error = ? WHERE account = ? AND id = ?", (firing.error, schedule.account, schedule.id)
    )
    db.execute(
        "DELETE FROM ticks WHERE (account, schedule, tick_ms) IN"
        " (SELECT account, schedule, tick_ms FROM ticks WHERE stored_ms < ? ORDER BY stored_ms LIMIT ?)",
        (broker_time.retention_cutoff_ms(db, now_ms=now_ms, age_ms=_TICKS_KEPT_MS), _TICKS_REMOVED),
    )
    return True


def _record_tick(
    db: apsw.Connection, schedule: Schedule, tick_ms: int, outcome: str, now_ms: int, message_ids: Sequence[str] = ()
) -> bool:
    """Store a tick; False if it is stored already. A tick that was missed may still fire."""
    row = db.execute(
        "INSERT INTO ticks (account, schedule, tick_ms, outcome, stored_ms, messages) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET"
        " outcome = excluded.outcome, stored_ms = excluded.stored_ms, messages = excluded.messages"
        " WHERE outcome = 'MISSED' AND excluded.outcome <> 'MISSED' RETURNING 1",
        (schedule.account, schedule.id, tick_ms, outcome, now_ms, orjson.dumps(message_ids).decode()),
    ).get
    return row is not None


def _schedule(db: apsw.Connection, row: tuple[Any, ...]) -> Schedule:
    (
        account,
        schedule_id,
        destination,
        cron,
        options,
        body,
        caller_ip,
        created_ms,
        paused,
        next_ms,
        last_ms,
        run,
        error,
    ) = row
    try:
        read_options = unpack_options(options)
        message_ids = orjson.loads(run)
    except (ValueError, TypeError):
        read_options, message_ids, cron = _HIDDEN, [], _DAMAGED
    return Schedule(
        id=schedule_id,
        account=account,
        destination=destination,
        cron=cron,
        options=read_options,
        body=body,
        caller_ip=caller_ip,
        created_ms=created_ms,
        paused=bool(paused),
        pause=pauses.pause_of(db, account, "schedule", schedule_id) if paused else None,
        next_ms=next_ms,
        last_ms=last_ms,
        last_run=tuple(_run_states(db, account, message_ids)),
        error=error,
    )


def _run_states(db: apsw.Connection, account: int, message_ids: list[str]) -> list[tuple[str, RunState]]:
    """The states of the messages of a run, without messages that have been removed."""
    states: list[tuple[str, RunState]] = []
    for message_id in message_ids:
        stage = db.execute("SELECT stage FROM messages WHERE account = ? AND id = ?", (account, message_id)).get
        if stage is None:
            continue
        if stage == Stage.DELIVERED:
            states.append((message_id, RunState.SUCCESS))
        elif stage in (Stage.FAILED, Stage.CANCELED):
            states.append((message_id, RunState.FAIL))
        else:
            states.append((message_id, RunState.IN_PROGRESS))
    return states
