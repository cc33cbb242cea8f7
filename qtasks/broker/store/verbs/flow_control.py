"""Flow-control keys: pause, pin, reset, show (docs/protocol.md 2.11, 5.10). `admission` applies their limits."""

from __future__ import annotations

from typing import Any, Final, cast

import apsw

from qtasks.broker.core.operator_changes import OperatorChange
from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import FlowKeyState
from qtasks.broker.store.verbs import admission, pauses
from qtasks.broker.store.verbs.rows import fetch

_COUNT: Final = "SELECT count(*) FROM messages m WHERE m.account = f.account AND m.flow_key = f.key"
_SELECT: Final = (
    "SELECT f.key, f.parallelism, f.rate, f.period_s, f.pinned_parallelism, f.pinned_rate, f.paused, f.window_start_ms,"
    " f.window_count,"
    f" ({_COUNT} AND m.stage = {Stage.HELD}), ({_COUNT} AND m.stage = {Stage.ACTIVE}) FROM flow_keys f"
)
"""The counts use the indices ``messages_held`` and ``messages_running``."""


def pause_flow_key(
    db: apsw.Connection, account: int, key: str, *, paused: bool, now_ms: int, cause: OperatorChange | None = None
) -> None:
    """Pause or resume a key because of `cause`; an unknown key is created. Idempotent."""
    _ensure(db, account, key, now_ms)
    db.execute("UPDATE flow_keys SET paused = ? WHERE account = ? AND key = ?", (int(paused), account, key))
    pauses.note(db, account, "flow key", key, paused=paused, cause=cause)
    admission.refresh_key(db, account, key, now_ms)


def pin_flow_key(
    db: apsw.Connection,
    account: int,
    key: str,
    *,
    parallelism: int | None,
    rate: int | None,
    period_s: int | None,
    now_ms: int,
) -> None:
    """Set limits that messages cannot change; None leaves a limit as it is. An unknown key is created.

    Pinning the rate or the period begins a new window.
    """
    _ensure(db, account, key, now_ms)
    if parallelism is not None:
        db.execute(
            "UPDATE flow_keys SET parallelism = ?, pinned_parallelism = 1 WHERE account = ? AND key = ?",
            (parallelism, account, key),
        )
    if rate is not None or period_s is not None:
        db.execute(
            "UPDATE flow_keys SET rate = coalesce(?, rate), period_s = coalesce(?, period_s), pinned_rate = 1,"
            " window_start_ms = 0, window_count = 0 WHERE account = ? AND key = ?",
            (rate, period_s, account, key),
        )
    admission.refresh_key(db, account, key, now_ms)


def unpin_flow_key(db: apsw.Connection, account: int, key: str, *, parallelism: bool, rate: bool, now_ms: int) -> None:
    """Allow messages to change limits again; the pinned values stay until the next message."""
    db.execute(
        "UPDATE flow_keys SET pinned_parallelism = pinned_parallelism AND NOT ?, pinned_rate = pinned_rate AND NOT ?"
        " WHERE account = ? AND key = ?",
        (int(parallelism), int(rate), account, key),
    )
    admission.note_key_use(db, account, key, now_ms)
    admission.refresh_key(db, account, key, now_ms)


def reset_flow_rate(db: apsw.Connection, account: int, key: str, *, now_ms: int) -> None:
    """Begin a new window now, with no starts counted."""
    db.execute(
        "UPDATE flow_keys SET window_start_ms = ?, window_count = 0 WHERE account = ? AND key = ?",
        (now_ms, account, key),
    )
    admission.note_key_use(db, account, key, now_ms)
    admission.refresh_key(db, account, key, now_ms)


def flow_key(db: apsw.Connection, account: int, key: str, *, now_ms: int) -> FlowKeyState | None:
    """A key with its counts, or None."""
    row = db.execute(f"{_SELECT} WHERE f.account = ? AND f.key = ?", (account, key)).get
    return None if row is None else _flow_key(db, account, row, now_ms)


def flow_keys(db: apsw.Connection, account: int, *, search: str, now_ms: int) -> list[FlowKeyState]:
    """All keys that contain `search`, in order."""
    keys = (
        fetch(db, f"{_SELECT} WHERE f.account = ? AND instr(f.key, ?) > 0 ORDER BY f.key", (account, search))
        if search
        else fetch(db, f"{_SELECT} WHERE f.account = ? ORDER BY f.key", (account,))
    )
    return [_flow_key(db, account, row, now_ms) for row in keys]


def running_now(db: apsw.Connection, account: int) -> int:
    """Attempts of the account in flight."""
    count = db.execute(f"SELECT count(*) FROM messages WHERE stage = {Stage.ACTIVE} AND account = ?", (account,)).get
    return cast("int", count)


def _ensure(db: apsw.Connection, account: int, key: str, now_ms: int) -> None:
    """Create a key that does not exist yet, or note its use."""
    db.execute(
        "INSERT INTO flow_keys (account, key, used_ms) VALUES (?, ?, ?)"
        " ON CONFLICT (account, key) DO UPDATE SET used_ms = excluded.used_ms",
        (account, key, now_ms),
    )


def _flow_key(db: apsw.Connection, account: int, row: tuple[Any, ...], now_ms: int) -> FlowKeyState:
    key, parallelism, rate, period_s, pinned_parallelism, pinned_rate, paused, start_ms, count, waiting, running = row
    window_is_over = admission.window_end(start_ms, period_s, now_ms) <= now_ms
    return FlowKeyState(
        key=key,
        parallelism=parallelism,
        rate=rate,
        period_s=period_s,
        pinned_parallelism=bool(pinned_parallelism),
        pinned_rate=bool(pinned_rate),
        paused=bool(paused),
        window_start_ms=start_ms,
        started=0 if window_is_over else count,
        waiting=waiting,
        running=running,
        pause=pauses.pause_of(db, account, "flow key", key) if paused else None,
    )
