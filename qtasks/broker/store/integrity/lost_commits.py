"""What the damage of a write-ahead log has made unreadable: how many commits and messages, and since when."""

from __future__ import annotations

import datetime
from pathlib import Path

from qtasks.broker.store.integrity.page_reader import PageFile, TableReader, Value
from qtasks.broker.store.integrity.wal_check import find_damage, read_frames


def sentence(path: str) -> str | None:
    """What is lost with the damaged log of the database at `path`; None if it is sound.

    Call it while no process has the database open, and before SQLite opens it: SQLite drops these commits in silence.
    """
    damage = find_damage(path)
    if damage is None:
        return None
    where = f"at frame {damage.frame}" if damage.frame else "in its header"
    commits = "1 commit" if damage.commits == 1 else f"{damage.commits} commits"
    newest, accepted = _around(path, damage.frame)
    since = "" if newest is None else f" made after {_time(newest)}"
    return (
        f"its write-ahead log is damaged {where}: {commits}{since} cannot be read, with at least {accepted} accepted"
        " messages; nothing was changed"
    )


def _around(path: str, first: int) -> tuple[int | None, int]:
    """The time (Unix ms) of the last log entry before frame `first`, and how many messages were accepted later."""
    before: dict[int, bytes] = {}
    behind: dict[int, bytes] = {}
    for frame in read_frames(path):
        (before if frame.number < first else behind)[frame.page] = frame.image
    pages = PageFile(Path(path), before)
    later = PageFile(Path(path), {**before, **behind})
    try:
        reader = TableReader(pages)
        root = reader.roots().get("log")
        last = None if root is None else reader.last_row(root)
        newest_n, newest_ms = (0, None) if last is None else (last[0] or 0, _log_time(last[1]))
        accepted = {
            n
            for number, image in behind.items()
            for n, values in TableReader(later).page_rows(number, image)
            if n is not None and n > newest_n and _log_time(values) is not None and values[4] == "CREATED"
        }
    finally:
        pages.close()
        later.close()
    return newest_ms, len(accepted)


def _log_time(values: tuple[Value, ...]) -> int | None:
    """The time of a row of table ``log``; None if it is a row of another table."""
    match values:
        case (None, int(), int(), int(time_ms), str(), _, _, _, _, _, *_):
            return time_ms
    return None


def _time(time_ms: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "an unknown time"
