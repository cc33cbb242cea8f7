"""Where the tasks of an account are: the URL prefixes that its messages and declared schedules go to."""

from __future__ import annotations

from typing import Final

import apsw

from qtasks.broker.store.verbs.rows import fetch

_LATEST: Final = 1_000
"""Destinations that are looked at, the latest ones."""
_TASK_URLS: Final = (
    "SELECT url FROM insight_destinations WHERE account = ? AND is_task = 1 AND url != '' ORDER BY id DESC LIMIT ?"
)
IS_OF_FRAMEWORK: Final = "instr(options, '\"Qtasks-End-Callback\"') > 0"
"""True for a schedule that calls a task: only the framework makes schedules with an end callback."""
_SCHEDULED: Final = (
    f"SELECT destination FROM schedules WHERE account = ? AND {IS_OF_FRAMEWORK} ORDER BY created_ms DESC LIMIT ?"
)


def prefixes(db: apsw.Connection, account: int) -> list[str]:
    """The URLs before the names of tasks, with a slash at their ends, the latest first."""
    urls = [
        url.partition("?")[0] for query in (_TASK_URLS, _SCHEDULED) for (url,) in fetch(db, query, (account, _LATEST))
    ]
    return list(dict.fromkeys(f"{url.rpartition('/')[0]}/" for url in urls if url.count("/") > 2))
